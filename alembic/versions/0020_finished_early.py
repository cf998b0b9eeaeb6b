"""Index of mailings that finished before their end: they run again when a zone is corrected."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

FINISHED = "status = 'finished' AND deleted_at IS NULL AND send_interval_time_start IS NOT NULL"


def upgrade() -> None:
    op.create_index(
        "mailing_finished_idx", "mailing", ["datetime_end"], postgresql_where=sa.text(FINISHED)
    )


def downgrade() -> None:
    op.drop_index("mailing_finished_idx", table_name="mailing")
