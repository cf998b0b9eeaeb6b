"""Where the database is: a copy of it gives out other ids, and a restored one sends nothing.

All is decided here, in the database: a process that stays connected through a failover cannot
pass by it, nor can a claim or a new message.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

LARGEST_ID = 2**53 - 1
UNBOUNDED = 2**63 - 1

# What a server does not tell stays null: managed ones may keep quiet about their WAL or control
# file. The timeline is the one that is written to: that of the last checkpoint lags after a
# promotion.
WAL_TIMELINE = """
CREATE FUNCTION wal_timeline() RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN CASE WHEN NOT pg_is_in_recovery()
        THEN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint END;
EXCEPTION WHEN insufficient_privilege OR feature_not_supported THEN
    RETURN NULL;
END $$
"""
SYSTEM_IDENTIFIER = """
CREATE FUNCTION system_identifier() RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT control.system_identifier FROM pg_control_system() AS control);
EXCEPTION WHEN insufficient_privilege OR feature_not_supported THEN
    RETURN NULL;
END $$
"""
# Asked by every claim, so that it must be cheap: the moment at which the server started stands for
# the server. A row that a dump brought was written by another transaction than it says.
ORIGIN_IS_CURRENT = """
CREATE FUNCTION origin_is_current() RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT count(*) = 1 AND bool_and(written_by = origin.xmin::text::bigint
            AND started_at = pg_postmaster_start_time()
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND timeline IS NOT DISTINCT FROM wal_timeline())
        FROM origin);
END $$
"""
SENDING_IS_ALLOWED = """
CREATE FUNCTION sending_is_allowed() RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN origin_is_current() AND NOT EXISTS (SELECT FROM origin WHERE held_since IS NOT NULL);
END $$
"""
# Ids go on behind a gap that is larger than what another copy can have given out since, and at a
# place of their own: two copies that start from one meet only when both chose alike, of 2^43
# places at first, whatever their clocks say. Each jump takes a part of what is left: ids never run
# out. A new timeline is a restore when recovery was told where to stop, else a promotion.
UPDATE_ORIGIN = f"""
CREATE FUNCTION update_origin() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    here record;
    was record;
    last_id bigint;
    room bigint;
    is_restored boolean;
BEGIN
    IF pg_is_in_recovery() OR origin_is_current() THEN
        RETURN false;
    END IF;
    LOCK TABLE origin IN SHARE ROW EXCLUSIVE MODE;
    IF origin_is_current() THEN  -- by another process, meanwhile
        RETURN false;
    END IF;
    SELECT system_identifier() AS server, wal_timeline() AS timeline, oid AS database INTO here
        FROM pg_database WHERE datname = current_database();
    SELECT count(*) > 0 AS is_known, max(held_since) AS held_since, max(data_until) AS data_until,
        coalesce(count(*) > 1 OR bool_or(origin.server <> here.server)
            OR bool_or(origin.database <> here.database)
            OR bool_or(origin.written_by <> origin.xmin::text::bigint)
            OR bool_or(origin.timeline <> here.timeline) AND EXISTS (
                SELECT FROM pg_settings WHERE setting <> '' AND name IN ('recovery_target',
                    'recovery_target_lsn', 'recovery_target_name', 'recovery_target_time',
                    'recovery_target_xid')), false) AS is_restored
        INTO was FROM origin;
    is_restored := was.is_restored
        AND (EXISTS (SELECT FROM mailing) OR EXISTS (SELECT FROM report));

    SELECT greatest(CASE WHEN is_called THEN last_value END, (SELECT max(id) FROM message))
        INTO last_id FROM message_id_seq;
    IF last_id IS NOT NULL THEN
        room := ({LARGEST_ID} - last_id) / 1024;
        PERFORM setval('message_id_seq',
            last_id + least(4294967296, room) + floor(random() * room)::bigint);
    END IF;

    DELETE FROM origin;
    INSERT INTO origin
        (server, database, timeline, started_at, written_by, moved_at, held_since, data_until)
    VALUES (here.server, here.database, here.timeline, pg_postmaster_start_time(),
        pg_current_xact_id()::xid::text::bigint, clock_timestamp(),
        CASE WHEN is_restored THEN clock_timestamp() ELSE was.held_since END,
        CASE WHEN is_restored THEN (SELECT greatest((SELECT max(updated_at) FROM mailing),
            (SELECT max(last_sent_at) FROM ledger), (SELECT max(sent_at) FROM report),
            (SELECT at FROM audit ORDER BY id DESC LIMIT 1))) ELSE was.data_until END);
    IF NOT origin_is_current() THEN
        RAISE EXCEPTION 'update_origin() does not work after a savepoint';
    END IF;
    RETURN was.is_known;
END $$
"""  # noqa: S608  # a number of ours
# Before the first id of the statement is drawn.
BEFORE_INSERT = """
CREATE FUNCTION insert_updates_origin() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM update_origin();
    RETURN NULL;
END $$
"""
ON_MESSAGE = """
CREATE TRIGGER insert_updates_origin BEFORE INSERT ON message
FOR EACH STATEMENT EXECUTE FUNCTION insert_updates_origin()
"""


def upgrade() -> None:
    op.create_table(
        "origin",
        sa.Column("server", sa.BigInteger(), nullable=True),
        sa.Column("database", sa.BigInteger(), nullable=False),
        sa.Column("timeline", sa.BigInteger(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("written_by", sa.BigInteger(), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("held_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("data_until", sa.DateTime(timezone=True), nullable=True),
    )
    op.execute(f"ALTER TABLE message ALTER COLUMN id SET MAXVALUE {LARGEST_ID}")
    op.execute(WAL_TIMELINE)
    op.execute(SYSTEM_IDENTIFIER)
    op.execute(ORIGIN_IS_CURRENT)
    op.execute(SENDING_IS_ALLOWED)
    op.execute(UPDATE_ORIGIN)
    op.execute(BEFORE_INSERT)
    op.execute(ON_MESSAGE)


def downgrade() -> None:
    op.execute("DROP TRIGGER insert_updates_origin ON message")
    for function in (
        *("insert_updates_origin", "update_origin", "sending_is_allowed", "origin_is_current"),
        *("system_identifier", "wal_timeline"),
    ):
        op.execute(f"DROP FUNCTION {function}")
    op.execute(f"ALTER TABLE message ALTER COLUMN id SET MAXVALUE {UNBOUNDED}")
    op.drop_table("origin")
