"""Of a message that failed: whether it may have been accepted, and when its pause ends."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# What waits or is unknown has its last failure; only these reasons leave the delivery unknown.
FILL = """
    UPDATE message SET
        unknown_reason = CASE WHEN last_failure IN ('timeout', 'connection_lost', 'lease_expired')
                              THEN last_failure WHEN status = 'unknown' THEN reason END,
        retry_at = CASE WHEN status = 'scheduled' AND reason IS NOT NULL THEN due_at END
    WHERE status = 'unknown' OR status IN ('scheduled', 'sending') AND last_failure IS NOT NULL"""


def upgrade() -> None:
    op.add_column("message", sa.Column("unknown_reason", sa.String(), nullable=True))
    op.add_column("message", sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(FILL)
    op.create_check_constraint(
        op.f("message_unknown_check"),
        "message",
        "unknown_reason IS NULL OR status IN ('scheduled', 'sending', 'unknown')",
    )
    op.create_index(
        "message_retry_idx",
        "message",
        ["retry_at"],
        postgresql_where=sa.text("status = 'scheduled' AND retry_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index(
        "message_retry_idx",
        table_name="message",
        postgresql_where=sa.text("status = 'scheduled' AND retry_at IS NOT NULL"),
    )
    op.drop_constraint(op.f("message_unknown_check"), "message")
    op.drop_column("message", "retry_at")
    op.drop_column("message", "unknown_reason")
