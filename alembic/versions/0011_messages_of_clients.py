"""Indexes for the messages of a client in all mailings, and for the last digits of phones."""

from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the indexes. Each needs a scan of its table, and no row is changed meanwhile."""
    _run("0011_messages_of_clients.sql")


def downgrade() -> None:
    """Remove the indexes."""
    _run("0011_messages_of_clients_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
