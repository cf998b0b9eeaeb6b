"""Stop numbers: how it is known that no worker sends for a mailing any more."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.schema import CreateSequence, DropSequence

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(CreateSequence(sa.Sequence("stop_number")))
    op.add_column("mailing", sa.Column("replan_stop", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("mailing", "replan_stop")
    op.execute(DropSequence(sa.Sequence("stop_number")))
