"""What a mailing in progress is planned anew by: its own messages, and changes of time zones."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

LIVE = "NOT is_settled AND deleted_at IS NULL"
THIS_TRANSACTION = "(pg_current_xact_id()::text)::bigint"
NOTE_ZONE = """
CREATE FUNCTION client_notes_time_zone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO moved_client (client_id)
    SELECT come.id FROM come JOIN gone USING (id)
    WHERE come.time_zone <> gone.time_zone AND come.deleted_at IS NULL;
    RETURN NULL;
END $$
"""
ON_ZONE = """
CREATE TRIGGER client_notes_time_zone AFTER UPDATE ON client
REFERENCING OLD TABLE AS gone NEW TABLE AS come
FOR EACH STATEMENT EXECUTE FUNCTION client_notes_time_zone()
"""


def upgrade() -> None:
    op.add_column(
        "client", sa.Column("created_by", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.alter_column("client", "created_by", server_default=sa.text(THIS_TRANSACTION))
    op.add_column("mailing", sa.Column("audience_snapshot", sa.String(), nullable=True))
    op.add_column(
        "mailing", sa.Column("replan_cursor", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.add_column(
        "mailing", sa.Column("filter_changed", sa.Boolean(), server_default="false", nullable=False)
    )
    # the pass over the directory that one was in the middle of changed nothing that is not asked
    # of its messages too
    op.execute("UPDATE mailing SET filter_changed = true WHERE replanning")
    op.create_index(
        "mailing_replan_idx",
        "mailing",
        ["replan_cursor", "id"],
        postgresql_where=sa.text(f"{LIVE} AND replanning"),
    )
    op.create_table(
        "moved_client",
        sa.Column("client_id", sa.BigInteger(), nullable=False),
        postgresql_with={
            "autovacuum_vacuum_scale_factor": "0",
            "autovacuum_vacuum_threshold": "10000",
        },
    )
    op.execute(NOTE_ZONE)
    op.execute(ON_ZONE)


def downgrade() -> None:
    op.execute("DROP TRIGGER client_notes_time_zone ON client")
    op.execute("DROP FUNCTION client_notes_time_zone")
    op.drop_table("moved_client")
    op.drop_index("mailing_replan_idx", table_name="mailing")
    # what is still to be planned anew is gone over with the directory
    op.execute("UPDATE mailing SET audience_cursor = 0 WHERE replanning")
    for column in ("filter_changed", "replan_cursor", "audience_snapshot"):
        op.drop_column("mailing", column)
    op.drop_column("client", "created_by")
