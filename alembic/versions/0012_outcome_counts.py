"""Outcomes of all mailings by time and reason; they outlive their mailings.

The daily reports read them, and what is deleted stays in the sums over all mailings.
"""

from typing import Any

import sqlalchemy as sa
from alembic import context, op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

OUTCOMES = ("delivered", "undelivered", "unknown", "cancelled")
EVENTS = ("insert", "update")
SUMS = ", ".join(f'sum("{name}")' for name in OUTCOMES)

# Every outcome counts by the quarter of an hour in which it happened, and by its reason if it has
# one. An outcome that is taken back is subtracted where it was counted.
OLD_KEY, KEY = "|| reason AS failure", "|| coalesce(reason, '') AS failure"
OLD_DIMENSION, DIMENSION = "'failure'", "'outcome'"

# What is settled or deleted counts for good; only those that are not deleted count as mailings. One
# that was cancelled before it began has no messages: its clients are cancelled at that moment.
MOVE_SETTLED = """
CREATE OR REPLACE FUNCTION mailing_moves_settled() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was_shown int := (old.is_settled AND old.deleted_at IS NULL)::int;
    shown int := coalesce((new.is_settled AND new.deleted_at IS NULL)::int, 0) - was_shown;
    counted int := coalesce(new.is_settled::int, 1) - old.is_settled::int;
    ended_as text := CASE WHEN shown > 0 THEN new.status ELSE old.status END;
    unsent bigint := CASE WHEN new.is_settled AND new.audience_until IS NULL
        THEN new.clients_count ELSE 0 END;
BEGIN
    UPDATE settled SET
        finished = settled.finished + CASE ended_as WHEN 'finished' THEN shown ELSE 0 END,
        cancelled_mailings =
            settled.cancelled_mailings + CASE ended_as WHEN 'cancelled' THEN shown ELSE 0 END,
        delivered = settled.delivered + counted * ledger.delivered,
        undelivered = settled.undelivered + counted * ledger.undelivered,
        "unknown" = settled."unknown" + counted * ledger."unknown",
        cancelled = settled.cancelled + counted * (ledger.cancelled + unsent)
    FROM ledger WHERE ledger.mailing_id = old.id;
    IF counted * unsent <> 0 THEN
        INSERT INTO tally_move (mailing_id, dimension, key, cancelled)
        SELECT old.id, 'outcome', at - at % 900 || ' mailing_cancelled', counted * unsent
        FROM (SELECT floor(extract(epoch FROM new.updated_at))::bigint) AS ended (at);
    END IF;
    RETURN coalesce(new, old);
END $$
"""
ON_SETTLED = (
    """
CREATE TRIGGER mailing_moves_settled AFTER UPDATE OF is_settled, deleted_at ON mailing
FOR EACH ROW WHEN (old.is_settled <> new.is_settled
    OR (old.deleted_at IS NULL) <> (new.deleted_at IS NULL))
EXECUTE FUNCTION mailing_moves_settled()
""",
    # before: its ledger goes with it
    """
CREATE TRIGGER deleted_mailing_moves_settled BEFORE DELETE ON mailing
FOR EACH ROW EXECUTE FUNCTION mailing_moves_settled()
""",
)
# Of mailings that took days the seconds are added up to the hour: what they leave of the failures,
# which are known by the quarter, has no reason.
FILL = f"""
    INSERT INTO outcome_count (quarter_start, reason, delivered, undelivered, "unknown", cancelled)
    SELECT to_timestamp(at - at % 900), reason, {SUMS} FROM (
        SELECT CASE WHEN dimension = 'second' THEN key::bigint END AS at, NULL AS reason,
            delivered, undelivered, "unknown", cancelled
        FROM tally WHERE dimension = 'second'
        UNION ALL
        SELECT CASE WHEN dimension = 'failure' THEN split_part(key, ' ', 1)::bigint END,
            CASE WHEN sign > 0 THEN substr(key, strpos(key, ' ') + 1) END,
            sign * delivered, sign * undelivered, sign * "unknown", sign * cancelled
        FROM tally CROSS JOIN (VALUES (1), (-1)) AS twice (sign) WHERE dimension = 'failure'
        UNION ALL
        SELECT extract(epoch FROM updated_at)::bigint, 'mailing_cancelled', 0, 0, 0, clients_count
        FROM mailing WHERE is_settled AND audience_until IS NULL
    ) AS told (at, reason, delivered, undelivered, "unknown", cancelled)
    GROUP BY 1, 2 HAVING ({SUMS}) <> (0, 0, 0, 0)"""  # noqa: S608  # our own columns
MERGE = """
    WITH moved AS (DELETE FROM tally_move RETURNING *)
    INSERT INTO tally
    SELECT mailing_id, dimension, key, sum(messages), sum(delivered), sum(undelivered),
        sum("unknown"), sum(cancelled)
    FROM moved GROUP BY mailing_id, dimension, key
    ON CONFLICT (mailing_id, dimension, key) DO UPDATE SET
        messages = tally.messages + excluded.messages,
        delivered = tally.delivered + excluded.delivered,
        undelivered = tally.undelivered + excluded.undelivered,
        "unknown" = tally."unknown" + excluded."unknown",
        cancelled = tally.cancelled + excluded.cancelled"""
COUNT_SETTLED = """
    UPDATE settled SET delivered = done.delivered, undelivered = done.undelivered,
        "unknown" = done."unknown", cancelled = done.cancelled
    FROM (
        SELECT coalesce(sum(delivered), 0) AS delivered,
            coalesce(sum(undelivered), 0) AS undelivered, coalesce(sum("unknown"), 0) AS "unknown",
            coalesce(sum(CASE WHEN audience_until IS NULL THEN clients_count ELSE cancelled END), 0)
                AS cancelled
        FROM mailing JOIN ledger ON mailing_id = id WHERE is_settled {alive}) AS done"""


def upgrade() -> None:
    op.create_table(
        "outcome_count",
        sa.Column("quarter_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        *(sa.Column(n, sa.BigInteger(), server_default="0", nullable=False) for n in OUTCOMES),
    )
    op.create_index(
        "outcome_count_quarter_start_reason_key",
        "outcome_count",
        ["quarter_start", "reason"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.execute(MERGE)
    op.execute(FILL)
    op.execute("DELETE FROM tally WHERE dimension = 'failure'")
    op.execute(COUNT_SETTLED.format(alive=""))
    tallies = _tallies()
    for event in EVENTS:
        new = tallies.TALLY.replace(OLD_KEY, KEY).replace(OLD_DIMENSION, DIMENSION)
        op.execute(_move_tally(event, new))
    op.execute("DROP TRIGGER mailing_moves_settled ON mailing")
    op.execute(MOVE_SETTLED)
    for trigger in ON_SETTLED:
        op.execute(trigger)


def downgrade() -> None:
    op.execute("DROP TRIGGER deleted_mailing_moves_settled ON mailing")
    op.execute("DROP TRIGGER mailing_moves_settled ON mailing")
    tallies = _tallies()
    op.execute(_replacing(tallies.MOVE_SETTLED))
    op.execute(tallies.ON_SETTLED)
    for event in EVENTS:
        op.execute(_move_tally(event, tallies.TALLY))
    op.execute(COUNT_SETTLED.format(alive="AND deleted_at IS NULL"))
    op.execute("DELETE FROM tally_move WHERE dimension = 'outcome'")
    # failures by time are known of messages that are still there
    moves = tallies.TALLY_MOVES["insert"].replace("FROM come", "FROM message")
    told = tallies.TALLY.format(moves=moves)
    op.execute(f"INSERT INTO tally SELECT * FROM ({told}) AS told WHERE dimension = 'failure'")  # noqa: S608  # our own words
    op.drop_table("outcome_count")


def _tallies() -> Any:  # noqa: ANN401  # a migration, which is a module
    return context.script.get_revision("0004").module


def _move_tally(event: str, tally: str) -> str:
    tallies = _tallies()
    moves = tally.format(moves=tallies.TALLY_MOVES[event])
    return _replacing(str(tallies.NOTE_MOVES)).format(event=event, what="tally", moves=moves)


def _replacing(function: str) -> str:
    return function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
