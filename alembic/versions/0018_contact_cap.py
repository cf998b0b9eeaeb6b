"""The newest marketing messages of each client, for the contact cap."""

from pathlib import Path

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, and the function that claims call."""
    _run("0018_contact_cap.sql")


def downgrade() -> None:
    """Remove them."""
    _run("0018_contact_cap_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
