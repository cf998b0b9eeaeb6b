"""Several gateways: routes of messages, the gateway and the parts of each, and counts of them."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables and columns. Existing messages get the route of the gateway `default`."""
    _run("0002_gateways.sql")


def downgrade() -> None:
    """Remove them. Which gateway has sent a message is lost."""
    _run("0002_gateways_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
