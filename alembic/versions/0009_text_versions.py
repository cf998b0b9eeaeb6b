"""Numbered versions of the text of a mailing, and the version that each message was sent with."""

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, the columns, and the counts of messages by version.

    The version of messages that were sent before stays null: version 1 is the text at that time.
    """
    _run("0009_text_versions.sql")


def downgrade() -> None:
    """Remove them. Messages then show the newest text again."""
    _run("0009_text_versions_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
