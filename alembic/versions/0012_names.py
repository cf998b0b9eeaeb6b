"""Names and labels of mailings, and the indexes that find and sort them."""

from pathlib import Path

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and index their words together with those of the text."""
    _run("0012_names.sql")


def downgrade() -> None:
    """Remove the columns and the indexes of the orders; the search finds texts alone again."""
    _run("0012_names_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
