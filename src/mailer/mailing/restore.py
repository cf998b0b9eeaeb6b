"""A database that was restored from a backup sends nothing until an admin allows it."""

from datetime import datetime

import msgspec
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor
from mailer.db import origin
from mailer.db.sql import add_up
from mailer.db.tables.mailing import OPEN_MAILING
from mailer.errors import ConflictError
from mailer.mailing.store import notify_mailings_changed
from mailer.statuses import OPEN, OUTCOMES, RETRYABLE, MailingStatus

log = structlog.get_logger()

COMMAND = "mailer resume-after-restore"
MAX_LISTED_MAILINGS = 100


class NotHeldError(ConflictError):
    """Sending was already allowed, or the database was restored again. Check its state again."""


class PendingMailing(msgspec.Struct, frozen=True):
    """A mailing with messages that a restored database would send."""

    id: int
    text: str
    status: MailingStatus
    datetime_start: datetime
    datetime_end: datetime
    messages: int


class Restored(msgspec.Struct, frozen=True):
    """The messages that a restored database would send if sending were allowed."""

    hold: origin.RestoreHold
    mailings: list[PendingMailing]
    """The mailings with the most messages, at most `MAX_LISTED_MAILINGS`."""
    mailings_count: int
    messages_count: int


# Includes messages that were claimed when the backup was made, because they are rescued and sent
# again, and messages of retries in progress.
PENDING = text(f"""
    SELECT id, text, status, datetime_start, datetime_end, messages,
        count(*) OVER () AS mailings_count, sum(messages) OVER ()::bigint AS messages_count
    FROM (
        SELECT mailing.*, CASE WHEN audience_until IS NULL THEN clients_count
            ELSE greatest(clients_count - ({add_up(OUTCOMES)}), {add_up(OPEN)})
                + CASE WHEN retry_before IS NULL THEN 0 ELSE {add_up(RETRYABLE)} END
            END AS messages
        FROM mailing JOIN mailing_counts ON mailing_id = id
        WHERE {OPEN_MAILING} AND status <> 'cancelled'
            AND datetime_end > clock_timestamp()
    ) AS pending
    WHERE messages > 0 ORDER BY messages DESC, id LIMIT :limit""")  # noqa: S608  # no user input


async def find_restored(connection: AsyncConnection) -> Restored | None:
    """Return what a restored database would send; None when sending is allowed."""
    hold = await origin.get_hold(connection)
    if hold is None:
        return None
    rows = (await connection.execute(PENDING, {"limit": MAX_LISTED_MAILINGS})).all()
    mailings = [
        PendingMailing(*(getattr(row, name) for name in PendingMailing.__struct_fields__))
        for row in rows
    ]
    counts = (rows[0].mailings_count, rows[0].messages_count) if rows else (0, 0)
    return Restored(hold, mailings, *counts)


async def resume(engine: AsyncEngine, held_since: datetime, actor: Actor) -> None:
    """Allow sending from a database that is held since `held_since`; raises `NotHeldError`."""
    async with engine.begin() as connection:
        if not await origin.allow_sending(connection, held_since):
            raise NotHeldError
        before = {"held_since": held_since}
        target = audit.Target("database")
        await audit.record(connection, actor, "sending_resumed", target, before=before)
        await notify_mailings_changed(connection)


class OriginCheck:
    """Records where the database runs, and logs when its sending is held or resumed."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._held_since: datetime | None = None

    async def run(self) -> None:
        """Check once; called at intervals."""
        async with self._engine.begin() as connection:
            if await origin.update(connection):
                log.info("database_moved")
                await notify_mailings_changed(connection)
            hold = await origin.get_hold(connection)
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
