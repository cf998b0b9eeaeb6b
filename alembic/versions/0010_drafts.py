"""Drafts: mailings that are saved, and of which nothing is sent until a user launches them."""

from pathlib import Path

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Allow the status `draft`, only for mailings that are closed and not started.

    A worker of the version before would take a draft for a mailing that has nothing left to send.
    The trigger ignores that.
    """
    _run("0010_drafts.sql")


def downgrade() -> None:
    """Cancel all drafts, and refuse the status."""
    _run("0010_drafts_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
