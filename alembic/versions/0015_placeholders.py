"""Placeholders in texts of mailings: templates of texts, and the field values of messages."""

from pathlib import Path

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and the function that shows the text of a message."""
    _run("0015_placeholders.sql")


def downgrade() -> None:
    """Remove them. Texts with placeholders become literal, so their mailings are paused."""
    _run("0015_placeholders_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
