"""A database that was restored from a backup sends nothing until an admin allows it.

Its messages may have been sent after the backup was made, and would be sent again. Therefore an
admin first sees what would be sent, and can cancel mailings.
"""

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
"""The command that allows sending; the log names it."""
MAX_LISTED_MAILINGS = 100
"""Mailings that `find_restored` returns at most."""


class NotHeldError(ConflictError):
    """Sending was already allowed, or the database was restored again. Check its state again."""


class PendingMailing(msgspec.Struct, frozen=True):
    """A mailing with messages that a restored database would send."""

    id: int
    name: str | None
    text: str
    status: MailingStatus
    datetime_start: datetime
    datetime_end: datetime
    messages: int
    """How many messages would be sent."""


class Restored(msgspec.Struct, frozen=True):
    """The messages that a restored database would send if sending were allowed."""

    hold: origin.RestoreHold
    mailings: list[PendingMailing]
    """The mailings with the most messages, at most `MAX_LISTED_MAILINGS`."""
    mailings_count: int
    """Number of all mailings with messages to send, including those that are not in the list."""
    messages_count: int
    """Number of the messages of all these mailings."""


# The mailings that would send messages, those with the most messages first. The messages of a
# mailing that would be sent are
# - before its start: one for each client;
# - after its start: those without an outcome, including clients whose messages are not written yet.
#   Messages that were being sent when the backup was made are included, because they are rescued
#   and sent again. A started audience may have grown or shrunk, so at least all open messages;
# - during a retry: also the messages to retry.
PENDING_MAILINGS = text(f"""
    SELECT id, name, text, status, datetime_start, datetime_end, messages,
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
    rows = (await connection.execute(PENDING_MAILINGS, {"limit": MAX_LISTED_MAILINGS})).all()
    mailings = [
        PendingMailing(*(getattr(row, name) for name in PendingMailing.__struct_fields__))
        for row in rows
    ]
    return Restored(
        hold,
        mailings,
        mailings_count=rows[0].mailings_count if rows else 0,
        messages_count=rows[0].messages_count if rows else 0,
    )


async def resume(engine: AsyncEngine, held_since: datetime, actor: Actor) -> None:
    """Allow sending from a database that is held since `held_since`.

    Raises `NotHeldError` when it is not held, or since another time: it was restored once more.
    """
    async with engine.begin() as connection:
        if not await origin.allow_sending(connection, held_since):
            raise NotHeldError
        before = {"held_since": held_since}
        target = audit.Target("database")
        await audit.record(connection, actor, "sending_resumed", target, before=before)
        await notify_mailings_changed(connection)


class OriginCheck:
    """A periodic check whether the database runs somewhere else than before, and may send.

    `db/origin.py` decides both. This class logs the changes.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._held_since: datetime | None = None
        """At the last check; None when sending was allowed."""

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
