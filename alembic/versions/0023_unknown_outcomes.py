"""Count an unknown outcome at the moment at which it was decided.

It was counted at the message's last attempt: a cancellation the next morning added outcomes to a
day whose report was mailed already.
"""

from typing import Any

from alembic import context, op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

OLD_MOMENT = "coalesce(sent_at, updated_at)"
MOMENT = "CASE status WHEN 'unknown' THEN updated_at ELSE coalesce(sent_at, updated_at) END"
# From the old moment, which is taken away, to the new one; the other way round to go back.
SHIFT = """
    INSERT INTO tally_move (mailing_id, dimension, key, messages, "unknown")
    SELECT mailing_id, dimension,
        CASE dimension WHEN 'second' THEN second::text
            ELSE second - second % 900 || ' ' || coalesce(reason, '') END,
        sum(sign), sum(sign)
    FROM message JOIN mailing ON mailing.id = mailing_id AND deleted_at IS NULL
        CROSS JOIN LATERAL (VALUES ({away}, sent_at), (-({away}), message.updated_at))
            AS moment (sign, at)
        CROSS JOIN LATERAL (SELECT floor(extract(epoch FROM at))::bigint AS second) AS ended
        CROSS JOIN (VALUES ('second'), ('outcome')) AS told (dimension)
    WHERE message.status = 'unknown' AND message.sent_at IS NOT NULL
    GROUP BY 1, 2, 3 HAVING sum(sign) <> 0"""


def upgrade() -> None:
    op.execute(SHIFT.format(away=-1))
    _define(MOMENT)


def downgrade() -> None:
    op.execute(SHIFT.format(away=1))
    _define(OLD_MOMENT)


def _define(moment: str) -> None:
    """Define the functions that note moves, as 0012 and 0022 do, with outcomes at a moment."""
    tallies, newest = _module("0004"), _module("0022")
    note = tallies.NOTE_MOVES.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
    insert, update = (
        newest.tally_moves(event).replace(OLD_MOMENT, moment) for event in ("insert", "update")
    )
    op.execute(note.format(event="insert", what="tally", moves=insert))
    op.execute(newest.NOTE_TALLY.format(told_apart=tallies.TOLD_APART, moves=update))


def _module(revision: str) -> Any:  # noqa: ANN401  # a migration, which is a module
    return context.script.get_revision(revision).module
