"""Tallies: counts that statistics and pages read instead of messages, mailings and clients.

A tally is moved by triggers, in the transaction that changes what it counts. Where many change the
same counts at once the triggers only note moves, without waiting for each other; a fold adds them
up. A count is the folded row and the moves that are not folded yet.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

OUTCOMES = ("delivered", "undelivered", "unknown", "cancelled")
COUNTS = ("messages", *OUTCOMES)
EVENTS = ("insert", "update")
SHORT_LIVED = {"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "10000"}

# The statement's rows come as transition tables: `gone` as they were, `come` as they are.
TABLES = {
    "insert": "NEW TABLE AS come",
    "update": "OLD TABLE AS gone NEW TABLE AS come",
    "delete": "OLD TABLE AS gone",
}

# As in 0001, and when the first and the last message were sent. Messages are deleted only when
# nobody counts them any more: that moves nothing.
LEDGER_MOVES = {
    "insert": "SELECT mailing_id, status, sent_at, 1 AS n FROM come",
    "update": "SELECT mailing_id, status, sent_at, 1 AS n FROM come"
    " UNION ALL SELECT mailing_id, status, NULL, -1 FROM gone",
}
MOVE_LEDGER = """
CREATE OR REPLACE FUNCTION {event}_moves_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WITH move AS MATERIALIZED (
        SELECT mailing_id,
            sum(n) FILTER (WHERE status = 'scheduled') AS scheduled,
            sum(n) FILTER (WHERE status = 'sending') AS sending,
            sum(n) FILTER (WHERE status = 'delivered') AS delivered,
            sum(n) FILTER (WHERE status = 'undelivered') AS undelivered,
            sum(n) FILTER (WHERE status = 'unknown') AS "unknown",
            sum(n) FILTER (WHERE status = 'cancelled') AS cancelled,
            min(sent_at) AS first_sent_at, max(sent_at) AS last_sent_at
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
        cancelled = ledger.cancelled + coalesce(move.cancelled, 0),
        first_sent_at = least(ledger.first_sent_at, move.first_sent_at),
        last_sent_at = greatest(ledger.last_sent_at, move.last_sent_at)
    FROM move JOIN locked USING (mailing_id) WHERE ledger.mailing_id = move.mailing_id;
    RETURN NULL;
END $$
"""

# Only what has an outcome or a reason is told apart, the rest of what was created waits: so a claim
# moves nothing, and an outcome only what it adds.
TOLD_APART = "WHERE reason IS NOT NULL OR status NOT IN ('scheduled', 'sending')"
MESSAGE = (
    "SELECT mailing_id, operator_code, time_zone, status, reason, attempts, sent_at, updated_at"
)
TALLY_MOVES = {
    "insert": f"{MESSAGE}, 1 AS n, 1 AS created FROM come",
    "update": f"{MESSAGE}, 1 AS n, 0 AS created FROM come {TOLD_APART}"
    f" UNION ALL {MESSAGE}, -1, 0 FROM gone {TOLD_APART}",
}
TALLY = """
    SELECT * FROM (
        SELECT mailing_id,
            CASE grouping(operator_code, time_zone, reason, attempt, second, failure)
                WHEN 31 THEN 'operator_code' WHEN 47 THEN 'time_zone' WHEN 55 THEN 'reason'
                WHEN 59 THEN 'attempts' WHEN 61 THEN 'second' ELSE 'failure' END AS dimension,
            coalesce(operator_code, time_zone, reason, attempt::text, second::text, failure) AS key,
            CASE WHEN grouping(operator_code, time_zone) < 3 THEN sum(created) ELSE sum(n) END
                AS messages,
            coalesce(sum(n) FILTER (WHERE status = 'delivered'), 0) AS delivered,
            coalesce(sum(n) FILTER (WHERE status = 'undelivered'), 0) AS undelivered,
            coalesce(sum(n) FILTER (WHERE status = 'unknown'), 0) AS "unknown",
            coalesce(sum(n) FILTER (WHERE status = 'cancelled'), 0) AS cancelled
        FROM (
            SELECT mailing_id, operator_code, time_zone, status, reason, n, created, second,
                CASE WHEN second IS NOT NULL THEN attempts END AS attempt,
                second - second % 900 || ' ' || reason AS failure
            FROM ({moves}) AS moves CROSS JOIN LATERAL
                (SELECT CASE WHEN status NOT IN ('scheduled', 'sending')
                    THEN floor(extract(epoch FROM coalesce(sent_at, updated_at)))::bigint END
                    AS second) AS ended
        ) AS row
        GROUP BY GROUPING SETS ((mailing_id, operator_code), (mailing_id, time_zone),
            (mailing_id, reason), (mailing_id, attempt), (mailing_id, second),
            (mailing_id, failure))
    ) AS moved
    WHERE key IS NOT NULL AND (messages, delivered, undelivered, "unknown", cancelled)
        <> (0, 0, 0, 0, 0)"""

# Of each mailing's outcomes, as many moments as statistics can show: of old ones the seconds are
# added up to what is a part of their span.
COARSEN = """
    WITH fine AS MATERIALIZED (
        SELECT mailing_id AS id, CASE WHEN span <= 1800 THEN 1 WHEN span <= 18000 THEN 10
            WHEN span <= 108000 THEN 60 WHEN span <= 1080000 THEN 600 ELSE 3600 END AS resolution
        FROM (SELECT mailing_id, max(key)::bigint - min(key)::bigint AS span
              FROM tally WHERE dimension = 'second' GROUP BY mailing_id) AS outcomes
    ), gone AS (
        DELETE FROM tally USING fine WHERE mailing_id = id AND dimension = 'second'
            AND CASE WHEN dimension = 'second' THEN key::bigint % resolution END <> 0
        RETURNING tally.*, key::bigint - key::bigint % resolution AS start)
    INSERT INTO tally SELECT mailing_id, dimension, start::text, sum(messages), sum(delivered),
        sum(undelivered), sum("unknown"), sum(cancelled) FROM gone
    GROUP BY mailing_id, dimension, start
    ON CONFLICT (mailing_id, dimension, key) DO UPDATE SET
        messages = tally.messages + excluded.messages,
        delivered = tally.delivered + excluded.delivered,
        undelivered = tally.undelivered + excluded.undelivered,
        "unknown" = tally."unknown" + excluded."unknown",
        cancelled = tally.cancelled + excluded.cancelled"""

DIRECTORY_MOVES = {
    "insert": "SELECT *, 1 AS n FROM come",
    "update": "SELECT *, 1 AS n FROM come UNION ALL SELECT *, -1 FROM gone",
    "delete": "SELECT *, -1 AS n FROM gone",
}
DIRECTORY = """
    SELECT operator_code, tag, time_zone, sum(n) FROM ({moves}) AS row WHERE deleted_at IS NULL
    GROUP BY operator_code, tag, time_zone HAVING sum(n) <> 0"""
NOTE_MOVES = """
CREATE FUNCTION {event}_moves_{what}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {what}_move {moves};
    RETURN NULL;
END $$
"""
ON_STATEMENT = """
CREATE TRIGGER {event}_moves_{what} AFTER {event} ON {table} REFERENCING {tables}
FOR EACH STATEMENT EXECUTE FUNCTION {event}_moves_{what}()
"""

# Of what is settled the counts move no more, but when it is deleted or to be sent again. One that
# was cancelled before it began has no messages: its clients count as cancelled.
MOVE_SETTLED = """
CREATE FUNCTION mailing_moves_settled() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    comes boolean := new.is_settled AND new.deleted_at IS NULL;
    n int := CASE WHEN comes THEN 1 ELSE -1 END;
    status text := CASE WHEN comes THEN new.status ELSE old.status END;
BEGIN
    UPDATE settled SET
        finished = settled.finished + CASE status WHEN 'finished' THEN n ELSE 0 END,
        cancelled_mailings =
            settled.cancelled_mailings + CASE status WHEN 'cancelled' THEN n ELSE 0 END,
        delivered = settled.delivered + n * ledger.delivered,
        undelivered = settled.undelivered + n * ledger.undelivered,
        "unknown" = settled."unknown" + n * ledger."unknown",
        cancelled = settled.cancelled + n * CASE WHEN new.audience_until IS NULL
            THEN new.clients_count ELSE ledger.cancelled END
    FROM ledger WHERE ledger.mailing_id = new.id;
    RETURN NULL;
END $$
"""
ON_SETTLED = """
CREATE TRIGGER mailing_moves_settled AFTER UPDATE OF is_settled, deleted_at ON mailing
FOR EACH ROW WHEN ((old.is_settled AND old.deleted_at IS NULL)
    <> (new.is_settled AND new.deleted_at IS NULL))
EXECUTE FUNCTION mailing_moves_settled()
"""


def _counts(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(n, sa.BigInteger(), server_default="0", nullable=False) for n in names]


def upgrade() -> None:
    for column in ("operator_code", "time_zone"):
        missing = sa.Column(column, sa.String(), server_default="missing", nullable=False)
        op.add_column("message", missing)
    op.execute("DROP TRIGGER update_moves_ledger ON message")
    op.execute("""
        UPDATE message SET operator_code = client.operator_code, time_zone = client.time_zone
        FROM client WHERE client.id = client_id""")
    for column in ("operator_code", "time_zone"):
        op.alter_column("message", column, server_default=None)
    for column in ("first_sent_at", "last_sent_at"):
        op.add_column("ledger", sa.Column(column, sa.DateTime(timezone=True), nullable=True))
    op.execute("""
        UPDATE ledger SET first_sent_at = first, last_sent_at = last
        FROM (SELECT mailing_id, min(sent_at), max(sent_at) FROM message GROUP BY mailing_id)
            AS sent (mailing_id, first, last)
        WHERE sent.mailing_id = ledger.mailing_id""")
    op.add_column("mailing", sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "mailing", sa.Column("is_emptied", sa.Boolean(), server_default="false", nullable=False)
    )
    op.create_index(
        "mailing_settled_idx",
        "mailing",
        ["updated_at"],
        postgresql_where=sa.text("is_settled AND NOT is_emptied AND deleted_at IS NULL"),
    )
    op.create_index(
        op.f("message_mailing_id_reason_status_id_idx"),
        "message",
        ["mailing_id", "reason", "status", "id"],
        postgresql_where=sa.text("reason IS NOT NULL"),
    )
    _create_tables()
    _fill()
    op.execute("DROP TRIGGER delete_moves_ledger ON message")
    op.execute("DROP FUNCTION delete_moves_ledger")
    for event in EVENTS:
        op.execute(MOVE_LEDGER.format(event=event, moves=LEDGER_MOVES[event]))
        tally = TALLY.format(moves=TALLY_MOVES[event])
        op.execute(NOTE_MOVES.format(event=event, what="tally", moves=tally))
        _create_trigger(event, "tally", "message")
    _create_trigger("update", "ledger", "message")
    for event, moves in DIRECTORY_MOVES.items():
        directory = DIRECTORY.format(moves=moves)
        op.execute(NOTE_MOVES.format(event=event, what="directory", moves=directory))
        _create_trigger(event, "directory", "client")
    op.execute(MOVE_SETTLED)
    op.execute(ON_SETTLED)


def _create_trigger(event: str, what: str, table: str) -> None:
    op.execute(ON_STATEMENT.format(event=event, what=what, table=table, tables=TABLES[event]))


def _create_tables() -> None:
    for name in ("tally", "tally_move"):
        op.create_table(
            name,
            sa.Column("mailing_id", sa.BigInteger(), autoincrement=False, nullable=False),
            sa.Column("dimension", sa.String(), nullable=False),
            sa.Column("key", sa.String(), nullable=False),
            *_counts(*COUNTS),
            postgresql_with=SHORT_LIVED if name == "tally_move" else {},
        )
    op.create_primary_key(op.f("tally_pkey"), "tally", ["mailing_id", "dimension", "key"])
    for name in ("directory", "directory_move"):
        op.create_table(
            name,
            sa.Column("operator_code", sa.String(), nullable=False),
            sa.Column("tag", sa.String(), nullable=True),
            sa.Column("time_zone", sa.String(), nullable=False),
            *_counts("clients"),
            postgresql_with=SHORT_LIVED if name == "directory_move" else {},
        )
    op.create_index(
        "directory_operator_code_tag_time_zone_key",
        "directory",
        ["operator_code", "tag", "time_zone"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.create_table("settled", *_counts("finished", "cancelled_mailings", *OUTCOMES))


def _fill() -> None:
    """Count what is there already."""
    moves = TALLY_MOVES["insert"].replace("FROM come", "FROM message")
    op.execute(f"INSERT INTO tally {TALLY.format(moves=moves)}")
    op.execute(COARSEN)
    moves = DIRECTORY_MOVES["insert"].replace("FROM come", "FROM client")
    op.execute(f"INSERT INTO directory {DIRECTORY.format(moves=moves)}")
    op.execute("""
        INSERT INTO settled SELECT count(*) FILTER (WHERE status = 'finished'),
            count(*) FILTER (WHERE status = 'cancelled'),
            coalesce(sum(delivered), 0), coalesce(sum(undelivered), 0),
            coalesce(sum("unknown"), 0),
            coalesce(sum(CASE WHEN audience_until IS NULL THEN clients_count ELSE cancelled END), 0)
        FROM mailing JOIN ledger ON mailing_id = id WHERE is_settled AND deleted_at IS NULL""")


def downgrade() -> None:
    op.execute("DROP TRIGGER mailing_moves_settled ON mailing")
    op.execute("DROP FUNCTION mailing_moves_settled")
    for event in DIRECTORY_MOVES:
        op.execute(f"DROP TRIGGER {event}_moves_directory ON client")
        op.execute(f"DROP FUNCTION {event}_moves_directory")
    for event in EVENTS:
        op.execute(f"DROP TRIGGER {event}_moves_tally ON message")
        op.execute(f"DROP FUNCTION {event}_moves_tally")
        op.execute(f"DROP TRIGGER {event}_moves_ledger ON message")
        op.execute(f"DROP FUNCTION {event}_moves_ledger")
    first = context.script.get_revision("0001").module
    for event, moves in first.MOVES.items():
        op.execute(first.MOVE_LEDGER.format(event=event, moves=moves))
        op.execute(first.ON_MESSAGE.format(event=event, tables=first.TABLES[event]))
    for name in ("settled", "directory_move", "directory", "tally_move", "tally"):
        op.drop_table(name)
    op.drop_index(op.f("message_mailing_id_reason_status_id_idx"), table_name="message")
    op.drop_index("mailing_settled_idx", table_name="mailing")
    op.drop_column("mailing", "is_emptied")
    op.drop_column("mailing", "retired_at")
    for column in ("last_sent_at", "first_sent_at"):
        op.drop_column("ledger", column)
    for column in ("time_zone", "operator_code"):
        op.drop_column("message", column)
