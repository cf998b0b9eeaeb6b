"""Counts of the delivery of accepted messages, by gateway and operator code."""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, which the triggers fill from now on."""
    _run("0007_delivery_counts.sql")


def downgrade() -> None:
    """Remove it."""
    _run("0007_delivery_counts_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
