"""Pause, resume, cancel and retry: what is still to be done for a mailing, and why it failed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LIVE = "NOT is_settled AND deleted_at IS NULL"
LIVE_BEFORE = "status IN ('scheduled', 'running') AND deleted_at IS NULL"


def upgrade() -> None:
    op.add_column("message", sa.Column("last_failure", sa.String(), nullable=True))
    op.add_column("mailing", sa.Column("retry_before", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "mailing", sa.Column("is_settled", sa.Boolean(), server_default="false", nullable=False)
    )
    op.execute("UPDATE mailing SET is_settled = true WHERE status = 'finished'")
    op.create_check_constraint(
        op.f("mailing_settled_has_ended_check"),
        "mailing",
        "NOT is_settled OR status IN ('finished', 'cancelled')",
    )
    _index_live(LIVE)


def downgrade() -> None:
    _index_live(LIVE_BEFORE)
    op.drop_constraint(op.f("mailing_settled_has_ended_check"), "mailing")
    op.drop_column("mailing", "is_settled")
    op.drop_column("mailing", "retry_before")
    op.drop_column("message", "last_failure")


def _index_live(condition: str) -> None:
    op.drop_index("mailing_live_idx", table_name="mailing")
    op.create_index(
        "mailing_live_idx", "mailing", ["datetime_start"], postgresql_where=sa.text(condition)
    )
