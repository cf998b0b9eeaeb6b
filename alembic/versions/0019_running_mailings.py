"""What lets workers read only the mailings that have changed, and claims go on where they ended."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

NOTE_CHANGE = """
CREATE FUNCTION mailing_notes_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    new.changed_by := pg_current_xact_id()::text::bigint;
    RETURN new;
END $$
"""
ON_CHANGE = """
CREATE TRIGGER mailing_notes_change BEFORE INSERT OR UPDATE ON mailing
FOR EACH ROW EXECUTE FUNCTION mailing_notes_change()
"""


def upgrade() -> None:
    op.add_column(
        "mailing", sa.Column("changed_by", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.create_index("mailing_changed_idx", "mailing", ["changed_by"])
    op.execute(NOTE_CHANGE)
    op.execute(ON_CHANGE)
    _index_due("mailing_id", "due_at", "id")


def downgrade() -> None:
    _index_due("mailing_id", "due_at")
    op.execute("DROP TRIGGER mailing_notes_change ON mailing")
    op.execute("DROP FUNCTION mailing_notes_change")
    op.drop_index("mailing_changed_idx", table_name="mailing")
    op.drop_column("mailing", "changed_by")


def _index_due(*columns: str) -> None:
    op.drop_index("message_due_idx", table_name="message")
    op.create_index(
        "message_due_idx",
        "message",
        list(columns),
        postgresql_where=sa.text("status = 'scheduled'"),
    )
