"""Opt-outs: keyed hashes of phones, which clients have opted out, and the purpose of mailings."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables and columns. Existing mailings are for marketing; no client has opted out."""
    _run("0004_opt_outs.sql")


def downgrade() -> None:
    """Remove them. All opt-outs are lost."""
    _run("0004_opt_outs_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
