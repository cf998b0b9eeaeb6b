"""Receipts: the status `sent`, and what gateways say of messages that they have accepted."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the status, its counts, and the columns of receipts."""
    _run("0003_receipts.sql")


def downgrade() -> None:
    """Remove them. Messages that await a receipt count as delivered, and receipts are lost."""
    _run("0003_receipts_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
