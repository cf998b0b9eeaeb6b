"""Notices by mail: who gets them, what they tell, and what has been reported."""

from pathlib import Path

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables and the trigger."""
    _run("0019_notices.sql")


def downgrade() -> None:
    """Remove them."""
    _run("0019_notices_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
