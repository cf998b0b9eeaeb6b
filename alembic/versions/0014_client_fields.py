"""Fields of clients: values for the placeholders in texts of mailings."""

from pathlib import Path

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the fields of a client, and the counts of clients by the name of a field."""
    _run("0014_client_fields.sql")


def downgrade() -> None:
    """Remove them."""
    _run("0014_client_fields_down.sql")


def _run(name: str) -> None:
    """Run each statement of a file beside this one: the driver takes one at a time."""
    sql = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))
