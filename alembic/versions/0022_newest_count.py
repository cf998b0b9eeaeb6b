"""Counts of a mailing are found by their newest version, while a held snapshot keeps all others.

Every batch of messages rewrites its mailing's row of `ledger`. A snapshot that a backup or a report
holds keeps all the old versions, and a search by the mailing would read each of them.
"""

from typing import Any

from alembic import context, op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

# A version that finds no room beside the old ones stands in a later page, so that the index has it
# last; it is searched backwards, up to the first version that counts. An equality would lose the
# order. The search locks the rows in the order of their mailings, as all do who change many. The
# update is a statement of its own: a row that another session has just changed stands elsewhere
# than the statement that waited for it can see. It goes by the places alone: with `+ 0` no index
# serves the mailing. One plan is kept for any number of mailings, whatever the statistics say:
# PostgreSQL would take a new plan for each array of places for cheaper, at a tenth of a claim.
MOVE_LEDGER = """
CREATE OR REPLACE FUNCTION {event}_moves_ledger() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_nestloop TO off SET plan_cache_mode TO force_generic_plan AS $$
DECLARE
    places tid[] := ARRAY(
        SELECT newest.ctid
        FROM (SELECT DISTINCT mailing_id FROM come ORDER BY mailing_id) AS moved
        CROSS JOIN LATERAL (
            SELECT ctid FROM ledger
            WHERE ledger.mailing_id BETWEEN moved.mailing_id AND moved.mailing_id
            ORDER BY ledger.mailing_id DESC LIMIT 1 FOR NO KEY UPDATE
        ) AS newest);
BEGIN
    UPDATE ledger SET {add}, {sent}
    FROM (
        SELECT mailing_id, {sums}, min(sent_at) AS first_sent_at, max(sent_at) AS last_sent_at
        FROM ({moves}) AS row GROUP BY mailing_id
    ) AS move
    WHERE ledger.ctid = ANY (places) AND ledger.mailing_id + 0 = move.mailing_id;
    RETURN NULL;
END $$
"""
# A first claim moves none of these counts: the statement that finds nothing to note is not begun.
NOTE_TALLY = """
CREATE OR REPLACE FUNCTION update_moves_tally() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM come {told_apart} UNION ALL SELECT FROM gone {told_apart}) THEN
        INSERT INTO tally_move {moves};
    END IF;
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    tallies = _module("0004")
    _define_ledger(MOVE_LEDGER)
    op.execute(NOTE_TALLY.format(told_apart=tallies.TOLD_APART, moves=tally_moves("update")))


def downgrade() -> None:
    for event in _module("0021").MOVES:
        op.execute(f"ALTER FUNCTION {event}_moves_ledger() RESET ALL")
    _define_ledger(_module("0021").MOVE_LEDGER)
    note = _module("0004").NOTE_MOVES.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
    op.execute(note.format(event="update", what="tally", moves=tally_moves("update")))


def _define_ledger(function: str) -> None:
    last = _module("0021")
    for event, moves in last.MOVES.items():
        sums, add, sent = last.SUMS, last.ADD, last.SENT
        op.execute(function.format(event=event, moves=moves, sums=sums, add=add, sent=sent))


def tally_moves(event: str) -> str:
    """Return the statement of 0012 that tells what an insert or an update has moved."""
    tallies, outcomes = _module("0004"), _module("0012")
    told: str = tallies.TALLY.replace(outcomes.OLD_KEY, outcomes.KEY)
    told = told.replace(outcomes.OLD_DIMENSION, outcomes.DIMENSION)
    return told.format(moves=tallies.TALLY_MOVES[event])


def _module(revision: str) -> Any:  # noqa: ANN401  # a migration, which is a module
    return context.script.get_revision(revision).module
