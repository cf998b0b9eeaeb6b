"""An index of mailings by the moment from which their retention counts."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "mailing_retention_idx",
        "mailing",
        [
            sa.text(
                "greatest(updated_at, CASE WHEN status::text = 'finished' THEN datetime_end END)"
            )
        ],
        postgresql_where=sa.text("is_settled AND NOT is_emptied AND deleted_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("mailing_retention_idx", table_name="mailing")
