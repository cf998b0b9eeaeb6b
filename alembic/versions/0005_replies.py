"""Replies of clients, the parts of replies that are not complete, and answers to replies."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables and the search in replies."""
    _run("0005_replies.sql")


def downgrade() -> None:
    """Remove them. All replies and answers are lost."""
    _run("0005_replies_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
