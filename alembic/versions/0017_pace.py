"""Priority and rate of mailings."""

from pathlib import Path

from alembic import op

revision = "0017"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and the table of slots that mailings with a rate use."""
    _run("0017_pace.sql")


def downgrade() -> None:
    """Remove them: all mailings share the capacity equally again."""
    _run("0017_pace_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
