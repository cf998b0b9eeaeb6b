"""Keep for whom a report is decided: the other recipients can be tried again alone."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "report",
        sa.Column("decided", sa.ARRAY(sa.LargeBinary), nullable=False, server_default="{}"),
    )


def downgrade() -> None:
    op.drop_column("report", "decided")
