"""SQL that reads how many messages the mailings still have to send."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
from sqlalchemy import ARRAY, BigInteger, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.sql import add_up
from mailer.db.tables.mailing import OPEN_MAILING
from mailer.statuses import MESSAGE_STATUSES, OPEN


class GatewayLoad(msgspec.Struct, frozen=True):
    """The messages that all mailings still have to send, at one moment.

    The requested mailings are those whose ids `read_load` got.
    """

    now: datetime
    waiting: Mapping[int, int]
    """Messages that each running mailing still has to send, by its id. Includes the messages to
    clients of its audience that are not enqueued yet."""
    started: frozenset[int]
    """Ids of the requested mailings that are started."""
    enqueuing: frozenset[int]
    """Ids of the requested mailings whose audience is being enqueued."""

    def messages_of_others(self, mailing_id: int | None) -> list[int]:
        """Return how many messages each of the other running mailings has to send.

        `mailing_id` is None for a mailing that is not saved yet: all mailings are other ones.
        """
        return [count for other_id, count in self.waiting.items() if other_id != mailing_id]


# `live` are all mailings that are not closed. Of the running ones, `open_messages` are scheduled or
# being sent, and `not_enqueued` clients have no message yet. After a change of the filter, the
# audience is enqueued again; how many messages that will create is not known, so they count as 0.
# `is_requested` are the mailings with the given ids.
SELECT_LOAD = text(f"""
    WITH live AS (
        SELECT id, status, {add_up(OPEN)} AS open_messages, id = ANY (:ids) AS is_requested,
            CASE WHEN audience_cursor < audience_until AND NOT is_replanning THEN greatest(0,
                clients_count - ({add_up(MESSAGE_STATUSES)})) ELSE 0 END AS not_enqueued,
            audience_until IS NOT NULL AS is_started,
            audience_cursor < audience_until AS is_enqueuing
        FROM mailing JOIN mailing_counts ON mailing_id = id
        WHERE {OPEN_MAILING}
    )
    SELECT clock_timestamp() AS now,
        coalesce(array_agg(id) FILTER (WHERE status = 'running'), '{{}}') AS running,
        coalesce(array_agg(open_messages + not_enqueued) FILTER (WHERE status = 'running'), '{{}}')
            AS waiting,
        coalesce(array_agg(id) FILTER (WHERE is_requested AND is_started), '{{}}') AS started,
        coalesce(array_agg(id) FILTER (WHERE is_requested AND is_enqueuing), '{{}}') AS enqueuing
    FROM live""").bindparams(  # noqa: S608  # no user input
    bindparam("ids", type_=ARRAY(BigInteger))
)


async def read_load(connection: AsyncConnection, mailing_ids: Sequence[int]) -> GatewayLoad:
    """Return the load of all mailings. `mailing_ids` are the ids of the requested ones."""
    row = (await connection.execute(SELECT_LOAD, {"ids": list(mailing_ids)})).one()
    return GatewayLoad(
        row.now,
        dict(zip(row.running, row.waiting, strict=True)),
        frozenset(row.started),
        frozenset(row.enqueuing),
    )
