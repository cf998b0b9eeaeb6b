"""Webhooks: endpoints, the events for them, and the triggers that write the events."""

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables and triggers. Without an endpoint the triggers write nothing."""
    _run("0006_webhooks.sql")


def downgrade() -> None:
    """Remove them. Events that were not delivered are lost."""
    _run("0006_webhooks_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
