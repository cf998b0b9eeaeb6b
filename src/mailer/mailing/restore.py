"""A database that was restored from a copy: what it would send, and a person's word that it may."""

from datetime import datetime

import msgspec
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor
from mailer.db import origin
from mailer.errors import ConflictError
from mailer.mailing.model import Status
from mailer.mailing.telling import tell

log = structlog.get_logger()

COMMAND = "mailer resume-after-restore"
SHOWN_MAILINGS = 100


class NotHeldError(ConflictError):
    """Sending was already allowed, or the database was restored again. Check its state again."""


class PendingMailing(msgspec.Struct, frozen=True):
    """A mailing with messages that a restored database would send."""

    id: int
    text: str
    status: Status
    datetime_start: datetime
    datetime_end: datetime
    messages: int


class Restored(msgspec.Struct, frozen=True):
    """What a restored database would send, once it may."""

    hold: origin.Hold
    mailings: list[PendingMailing]
    """The largest ones, at most `SHOWN_MAILINGS`."""
    mailings_count: int
    messages_count: int


# A claim that the copy brought along counts too: it is rescued, and goes out again. So does what
# was to be sent again on request.
PENDING = text("""
    SELECT id, text, status, datetime_start, datetime_end, messages,
        count(*) OVER () AS mailings_count, sum(messages) OVER ()::bigint AS messages_count
    FROM (
        SELECT mailing.*, CASE WHEN audience_until IS NULL THEN clients_count
            ELSE greatest(clients_count - delivered - undelivered - "unknown" - cancelled,
                    scheduled + sending)
                + CASE WHEN retry_before IS NULL THEN 0 ELSE undelivered + "unknown" END
            END AS messages
        FROM mailing JOIN ledger ON mailing_id = id
        WHERE NOT is_settled AND deleted_at IS NULL AND status <> 'cancelled'
            AND datetime_end > clock_timestamp()
    ) AS pending
    WHERE messages > 0 ORDER BY messages DESC, id LIMIT :shown""")


async def find_restored(connection: AsyncConnection) -> Restored | None:
    """Return what a restored database would send; None when nothing is held."""
    hold = await origin.hold(connection)
    if hold is None:
        return None
    rows = (await connection.execute(PENDING, {"shown": SHOWN_MAILINGS})).all()
    mailings = [
        PendingMailing(*(getattr(row, name) for name in PendingMailing.__struct_fields__))
        for row in rows
    ]
    counts = (rows[0].mailings_count, rows[0].messages_count) if rows else (0, 0)
    return Restored(hold, mailings, *counts)


async def resume(engine: AsyncEngine, held_since: datetime, by: Actor) -> None:
    """Let a database send that is held since that moment; raises `NotHeldError`."""
    async with engine.begin() as connection:
        if not await origin.release(connection, held_since):
            raise NotHeldError
        was = {"held_since": held_since}
        target = audit.Target("database")
        await audit.record(connection, by, "sending_resumed", target, before=was)
        await tell(connection)


class OriginCheck:
    """Notes where the database is, again and again, and logs that it is held or may send again."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._held_since: datetime | None = None

    async def run(self) -> None:
        """Look once."""
        async with self._engine.begin() as connection:
            if await origin.update(connection):
                log.info("database_moved")
                await tell(connection)
            hold = await origin.hold(connection)
        held_since = None if hold is None else hold.since
        if held_since == self._held_since:
            return
        self._held_since = held_since
        if hold is None:
            log.info("sending_resumed")
        else:
            log.warning(
                "sending_held", reason="restored", data_until=hold.data_until, then_run=COMMAND
            )
