"""The first scheduled messages of mailings, from which it is seen what a mailing waits for.

They are read from an index. Usually that costs next to nothing. But while another session keeps an
old snapshot open, as a backup does, the index still has the entries of all messages that were sent
since. They come before the first scheduled message, and each page and answer would read them all.
So what took long to read is kept for a while: reads take at most a small share of the time.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import ARRAY, BigInteger, Engine, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.clock import elapsed

SLOW_READ = 0.1
"""Seconds; what took longer to read is kept."""
KEPT_FOR = 20
"""How long it is kept, as a multiple of the time that the read took: so reads take 5 %."""
MAX_READ_AGE = 30.0
"""Seconds for which it is kept at most: afterwards it may be wrong."""


class FirstMessage(NamedTuple):
    """The first scheduled message of a mailing and a route."""

    gateways: Sequence[str]
    due_at: datetime
    time_zone: str
    is_retry: bool
    last_sent_at: datetime | None
    """When the mailing sent last."""


class _KeptRead(NamedTuple):
    """The messages of a mailing that took long to read, and until when they are not read again."""

    messages: Sequence[FirstMessage]
    until: float


# The first scheduled message of each mailing and route: the index has those of a route in the order
# of their due times. A mailing that is being enqueued or replanned has none here: messages that are
# due may still come.
SELECT_FIRST_MESSAGES = text("""
    SELECT mailing_id, gateways, first.due_at, time_zone, first.due_at = retry_at AS is_retry,
        last_sent_at
    FROM mailing JOIN mailing_counts ON mailing_id = mailing.id
    CROSS JOIN route CROSS JOIN LATERAL (
        SELECT due_at, time_zone, retry_at FROM message
        WHERE message.mailing_id = mailing.id AND message.route = route.id
            AND message.status = 'scheduled'
        ORDER BY due_at, message.id LIMIT 1) AS first
    WHERE mailing.id = ANY (:ids) AND NOT is_replanning
        AND NOT coalesce(audience_cursor < audience_until, false)""").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger))
)


class FirstMessages:
    """Reads the first scheduled messages of the mailings of a database.

    `monotonic` returns seconds on a clock that never goes back.
    """

    def __init__(self, monotonic: Callable[[], float] = elapsed) -> None:
        self._monotonic = monotonic
        self._kept: dict[int, _KeptRead] = {}

    async def read(
        self, connection: AsyncConnection, mailing_ids: Sequence[int]
    ) -> Mapping[int, Sequence[FirstMessage]]:
        """Return the first scheduled messages of mailings, one for each route that has some."""
        now = self._monotonic()
        self._kept = {key: kept for key, kept in self._kept.items() if kept.until > now}
        found = {key: self._kept[key].messages for key in mailing_ids if key in self._kept}
        if missing := [key for key in mailing_ids if key not in found]:
            read = await _select(connection, missing)
            end = self._monotonic()
            found |= read
            if end - now > SLOW_READ:
                until = end + min(MAX_READ_AGE, KEPT_FOR * (end - now))
                self._kept |= {key: _KeptRead(read.get(key, ()), until) for key in missing}
        return {key: messages for key, messages in found.items() if messages}


async def _select(
    connection: AsyncConnection, mailing_ids: Sequence[int]
) -> dict[int, Sequence[FirstMessage]]:
    messages = defaultdict[int, list[FirstMessage]](list)
    for mailing_id, *columns in await connection.execute(
        SELECT_FIRST_MESSAGES, {"ids": mailing_ids}
    ):
        messages[mailing_id].append(FirstMessage(*columns))
    return dict(messages)


_READERS: WeakKeyDictionary[Engine, FirstMessages] = WeakKeyDictionary()
"""The reader of each database; a process has one."""


async def first_messages(
    connection: AsyncConnection, mailing_ids: Sequence[int]
) -> Mapping[int, Sequence[FirstMessage]]:
    """Return the first scheduled messages of mailings; see `FirstMessages.read`."""
    reader = _READERS.setdefault(connection.sync_engine, FirstMessages())
    return await reader.read(connection, mailing_ids)
