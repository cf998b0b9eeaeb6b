"""Ledgers and kinds of clients are found by an index, however many there are.

The plans in the functions that move ledgers were made once in a session, and walked over all
ledgers at every claim and every outcome where there were few when it began.
"""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

MOVES = {
    "insert": "SELECT mailing_id, status, sent_at, 1 AS n FROM come",
    "update": "SELECT mailing_id, status, sent_at, 1 AS n FROM come"
    " UNION ALL SELECT mailing_id, status, NULL, -1 FROM gone",
}
STATUSES = ("scheduled", "sending", "delivered", "undelivered", "unknown", "cancelled")
SUMS = ", ".join(
    f"coalesce(sum(n) FILTER (WHERE status = '{name}'), 0) AS \"{name}\"" for name in STATUSES
)
ADD = ", ".join(f'"{name}" = ledger."{name}" + move."{name}"' for name in STATUSES)
SENT = """
            first_sent_at = least(ledger.first_sent_at, move.first_sent_at),
            last_sent_at = greatest(ledger.last_sent_at, move.last_sent_at)"""
# In one order, so that two statements never wait for each other in a circle. By the primary key,
# and by one plan for all mailings: it is the best one whatever the statistics say.
MOVE_LEDGER = """
CREATE OR REPLACE FUNCTION {event}_moves_ledger() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan TO off SET plan_cache_mode TO force_generic_plan AS $$
DECLARE
    move record;
BEGIN
    FOR move IN
        SELECT mailing_id, {sums}, min(sent_at) AS first_sent_at, max(sent_at) AS last_sent_at
        FROM ({moves}) AS row GROUP BY mailing_id ORDER BY mailing_id
    LOOP
        UPDATE ledger SET {add}, {sent} WHERE mailing_id = move.mailing_id;
    END LOOP;
    RETURN NULL;
END $$
"""
# As in 0004.
MOVE_LEDGERS_TOGETHER = """
CREATE OR REPLACE FUNCTION {event}_moves_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WITH move AS MATERIALIZED (
        SELECT mailing_id, {sums}, min(sent_at) AS first_sent_at, max(sent_at) AS last_sent_at
        FROM ({moves}) AS row GROUP BY mailing_id
    ), locked AS MATERIALIZED (
        SELECT ledger.mailing_id FROM ledger WHERE mailing_id IN (SELECT mailing_id FROM move)
        ORDER BY mailing_id FOR NO KEY UPDATE
    )
    UPDATE ledger SET {add}, {sent}
    FROM move JOIN locked USING (mailing_id) WHERE ledger.mailing_id = move.mailing_id;
    RETURN NULL;
END $$
"""
INDEXES = {"directory_tag_idx": "tag", "directory_time_zone_idx": "time_zone"}


def upgrade() -> None:
    _define(MOVE_LEDGER)
    for name, column in INDEXES.items():
        op.create_index(name, "directory", [column])


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name, table_name="directory")
    _define(MOVE_LEDGERS_TOGETHER)


def _define(function: str) -> None:
    for event, moves in MOVES.items():
        op.execute(function.format(event=event, moves=moves, sums=SUMS, add=ADD, sent=SENT))
