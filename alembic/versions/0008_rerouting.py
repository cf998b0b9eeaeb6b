"""A queue of mailings whose routes are determined again, and the workers that applied routes."""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables. The queue replaces a column of `mailing`."""
    _run("0008_rerouting.sql")


def downgrade() -> None:
    """Add the column again, and remove the tables."""
    _run("0008_rerouting_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
