"""Clients, mailings, messages and the ledger."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# The statement's rows come as transition tables: `gone` as they were, `come` as they are.
MOVES = {
    "insert": "SELECT mailing_id, status, 1 AS n FROM come",
    "update": "SELECT mailing_id, status, 1 AS n FROM come"
    " UNION ALL SELECT mailing_id, status, -1 FROM gone",
    "delete": "SELECT mailing_id, status, -1 AS n FROM gone",
}
TABLES = {
    "insert": "NEW TABLE AS come",
    "update": "OLD TABLE AS gone NEW TABLE AS come",
    "delete": "OLD TABLE AS gone",
}

# Every statement on `message` moves the ledger of its mailings in its own transaction, so that no
# way of changing a message can forget it. Rows of several mailings are locked in one order, so
# that two such statements never wait for each other in a circle.
MOVE_LEDGER = """
CREATE FUNCTION {event}_moves_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WITH move AS MATERIALIZED (
        SELECT mailing_id,
            sum(n) FILTER (WHERE status = 'scheduled') AS scheduled,
            sum(n) FILTER (WHERE status = 'sending') AS sending,
            sum(n) FILTER (WHERE status = 'delivered') AS delivered,
            sum(n) FILTER (WHERE status = 'undelivered') AS undelivered,
            sum(n) FILTER (WHERE status = 'unknown') AS "unknown",
            sum(n) FILTER (WHERE status = 'cancelled') AS cancelled
        FROM ({moves}) AS row GROUP BY mailing_id
    ), locked AS MATERIALIZED (
        SELECT ledger.mailing_id FROM ledger WHERE mailing_id IN (SELECT mailing_id FROM move)
        ORDER BY mailing_id FOR NO KEY UPDATE
    )
    UPDATE ledger SET
        scheduled = ledger.scheduled + coalesce(move.scheduled, 0),
        sending = ledger.sending + coalesce(move.sending, 0),
        delivered = ledger.delivered + coalesce(move.delivered, 0),
        undelivered = ledger.undelivered + coalesce(move.undelivered, 0),
        "unknown" = ledger."unknown" + coalesce(move."unknown", 0),
        cancelled = ledger.cancelled + coalesce(move.cancelled, 0)
    FROM move JOIN locked USING (mailing_id) WHERE ledger.mailing_id = move.mailing_id;
    RETURN NULL;
END $$
"""
ON_MESSAGE = """
CREATE TRIGGER {event}_moves_ledger AFTER {event} ON message REFERENCING {tables}
FOR EACH STATEMENT EXECUTE FUNCTION {event}_moves_ledger()
"""


def upgrade() -> None:
    op.create_table(
        "client",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("phone", sa.String(), nullable=True),
        sa.Column("operator_code", sa.String(), nullable=False),
        sa.Column("tag", sa.String(), nullable=True),
        sa.Column("time_zone", sa.String(), server_default="UTC", nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(timestamptz '2000-01-01 00:00Z' AT TIME ZONE time_zone) IS NOT NULL",
            name=op.f("client_time_zone_check"),
        ),
        sa.CheckConstraint("operator_code ~ '^[0-9]{3}$'", name=op.f("client_operator_code_check")),
        sa.CheckConstraint("phone ~ '^7[0-9]{10}$'", name=op.f("client_phone_check")),
        sa.CheckConstraint(
            "CASE WHEN deleted_at IS NULL THEN phone IS NOT NULL"
            " ELSE phone IS NULL AND tag IS NULL END",
            name=op.f("client_erased_check"),
        ),
        sa.CheckConstraint("char_length(tag) BETWEEN 1 AND 64", name=op.f("client_tag_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("client_pkey")),
        sa.UniqueConstraint("phone", name=op.f("client_phone_key")),
    )
    op.create_index(
        op.f("client_operator_code_id_idx"),
        "client",
        ["operator_code", "id"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        op.f("client_tag_id_idx"),
        "client",
        ["tag", "id"],
        unique=False,
        postgresql_where=sa.text("tag IS NOT NULL"),
    )
    op.create_index(
        op.f("client_time_zone_id_idx"),
        "client",
        ["time_zone", "id"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "mailing",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("datetime_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("datetime_end", sa.DateTime(timezone=True), nullable=False),
        sa.Column("send_interval_time_start", sa.Time(), nullable=True),
        sa.Column("send_interval_time_end", sa.Time(), nullable=True),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column(
            "client_filter",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            nullable=True,
        ),
        sa.Column("on_unknown", sa.String(), server_default="retry", nullable=False),
        sa.Column("status", sa.String(), server_default="scheduled", nullable=False),
        sa.Column("clients_count", sa.BigInteger(), nullable=False),
        sa.Column("audience_cursor", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("audience_until", sa.BigInteger(), nullable=True),
        sa.Column("replanning", sa.Boolean(), server_default="false", nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "on_unknown IN ('retry', 'hold')", name=op.f("mailing_on_unknown_check")
        ),
        sa.CheckConstraint(
            "status IN ('scheduled', 'running', 'paused', 'finished', 'cancelled')",
            name=op.f("mailing_status_check"),
        ),
        sa.CheckConstraint(
            "audience_cursor <= coalesce(audience_until, 0)", name=op.f("mailing_audience_check")
        ),
        sa.CheckConstraint("char_length(text) BETWEEN 1 AND 1600", name=op.f("mailing_text_check")),
        sa.CheckConstraint("clients_count >= 0", name=op.f("mailing_clients_count_check")),
        sa.CheckConstraint(
            "datetime_end > datetime_start", name=op.f("mailing_end_after_start_check")
        ),
        sa.CheckConstraint(
            "num_nulls(send_interval_time_start, send_interval_time_end) IN (0, 2)"
            " AND send_interval_time_start <> send_interval_time_end",
            name=op.f("mailing_window_check"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("mailing_pkey")),
    )
    op.create_index(
        "mailing_deleted_idx",
        "mailing",
        ["id"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.create_index(
        "mailing_live_idx",
        "mailing",
        ["datetime_start"],
        unique=False,
        postgresql_where=sa.text("status IN ('scheduled', 'running') AND deleted_at IS NULL"),
    )
    op.create_index(
        op.f("mailing_status_id_idx"),
        "mailing",
        ["status", "id"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "message",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("mailing_id", sa.BigInteger(), nullable=False),
        sa.Column("client_id", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_owner", sa.Uuid(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("status", sa.String(), server_default="scheduled", nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.CheckConstraint(
            "(status = 'sending') = (lease_owner IS NOT NULL)"
            " AND (status = 'sending') = (lease_expires_at IS NOT NULL)",
            name=op.f("message_lease_check"),
        ),
        sa.CheckConstraint(
            "status IN ('scheduled', 'sending', 'delivered', 'undelivered',"
            " 'unknown', 'cancelled')",
            name=op.f("message_status_check"),
        ),
        sa.CheckConstraint("attempts >= 0", name=op.f("message_attempts_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("message_pkey")),
    )
    op.create_index(
        "message_due_idx",
        "message",
        ["mailing_id", "due_at"],
        unique=False,
        postgresql_where=sa.text("status = 'scheduled'"),
    )
    op.create_index(
        "message_lease_idx",
        "message",
        ["lease_expires_at"],
        unique=False,
        postgresql_where=sa.text("status = 'sending'"),
    )
    op.create_index(
        "message_mailing_id_client_id_key", "message", ["mailing_id", "client_id"], unique=True
    )
    op.create_index(
        op.f("message_mailing_id_status_id_idx"),
        "message",
        ["mailing_id", "status", "id"],
        unique=False,
    )
    op.create_table(
        "ledger",
        sa.Column("mailing_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("scheduled", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("sending", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("delivered", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("undelivered", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unknown", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cancelled", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("cancelled >= 0", name=op.f("ledger_cancelled_check")),
        sa.CheckConstraint("delivered >= 0", name=op.f("ledger_delivered_check")),
        sa.CheckConstraint("scheduled >= 0", name=op.f("ledger_scheduled_check")),
        sa.CheckConstraint("sending >= 0", name=op.f("ledger_sending_check")),
        sa.CheckConstraint("undelivered >= 0", name=op.f("ledger_undelivered_check")),
        sa.CheckConstraint("unknown >= 0", name=op.f("ledger_unknown_check")),
        sa.ForeignKeyConstraint(
            ["mailing_id"], ["mailing.id"], name=op.f("ledger_mailing_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("mailing_id", name=op.f("ledger_pkey")),
        postgresql_with={"fillfactor": "20"},
    )

    for event, moves in MOVES.items():
        op.execute(MOVE_LEDGER.format(event=event, moves=moves))
        op.execute(ON_MESSAGE.format(event=event, tables=TABLES[event]))


def downgrade() -> None:
    op.drop_table("ledger")
    op.drop_index(op.f("message_mailing_id_status_id_idx"), table_name="message")
    op.drop_index("message_mailing_id_client_id_key", table_name="message")
    op.drop_index(
        "message_lease_idx", table_name="message", postgresql_where=sa.text("status = 'sending'")
    )
    op.drop_index(
        "message_due_idx", table_name="message", postgresql_where=sa.text("status = 'scheduled'")
    )
    op.drop_table("message")
    op.drop_index(
        op.f("mailing_status_id_idx"),
        table_name="mailing",
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_index(
        "mailing_live_idx",
        table_name="mailing",
        postgresql_where=sa.text("status IN ('scheduled', 'running') AND deleted_at IS NULL"),
    )
    op.drop_index(
        "mailing_deleted_idx",
        table_name="mailing",
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.drop_table("mailing")
    op.drop_index(
        op.f("client_time_zone_id_idx"),
        table_name="client",
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_index(
        op.f("client_tag_id_idx"), table_name="client", postgresql_where=sa.text("tag IS NOT NULL")
    )
    op.drop_index(
        op.f("client_operator_code_id_idx"),
        table_name="client",
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_table("client")
    for event in MOVES:
        op.execute(f"DROP FUNCTION {event}_moves_ledger()")
