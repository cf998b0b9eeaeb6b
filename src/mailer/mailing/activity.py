"""What workers do for a mailing in the background, and why a running mailing does not send."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.clock import database_clock
from mailer.db.engine import is_unavailable
from mailer.gateway.channel import Channels
from mailer.mailing.errors import MailingNotFoundError
from mailer.mailing.first_messages import FirstMessage, first_messages
from mailer.mailing.model import RETRY_PAUSE, WINDOW_CLOSED, Hold, Mailing


class BackgroundWork(msgspec.Struct, frozen=True):
    """The background work in progress for a mailing."""

    is_started: bool
    """Whether workers have started the mailing: the enqueuing of its audience has begun."""
    is_enqueuing: bool
    """Whether some of its audience is not enqueued yet, and workers do that now."""
    is_replanning: bool
    """Whether its messages are replanned after a change; nothing is sent meanwhile."""
    is_retrying: bool
    """Whether workers schedule undelivered and unknown messages again, as a user requested."""
    is_expired: bool
    """Whether its retention period has passed: its messages are deleted, only counts are kept."""


# The columns are in the order of the fields of `BackgroundWork`. Before the start, `audience_until`
# is null, and so is the comparison with it.
BACKGROUND_WORK = text("""
    SELECT audience_until IS NOT NULL,
        coalesce(audience_cursor < audience_until AND NOT is_replanning, false), is_replanning,
        retry_before IS NOT NULL, purge_started_at IS NOT NULL
    FROM mailing WHERE id = :mailing_id AND deleted_at IS NULL""")


async def get_background_work(connection: AsyncConnection, mailing_id: int) -> BackgroundWork:
    """Return the background work of a mailing; raises `MailingNotFoundError`."""
    row = (await connection.execute(BACKGROUND_WORK, {"mailing_id": mailing_id})).one_or_none()
    if row is None:
        raise MailingNotFoundError
    return BackgroundWork(*row)


NO_GATEWAY = "no_gateway"
"""Reason of a hold: no gateway is configured, or not the mailing's own."""
NO_GATEWAY_FOR_CLIENTS = "no_gateway_for_clients"
"""Reason of a hold: no gateway is usable that may take the messages that are left."""


def with_hold(mailing: Mailing, channels: Channels) -> Mailing:
    """Return a mailing with `held` set if none of its gateways is usable, whoever its clients are.

    A mailing that is not running, or is held already because its database was restored, is returned
    as it is.
    """
    if mailing.status != "running" or mailing.held:
        return mailing
    if not channels.usable_by(mailing.gateway):
        # since it could run, because it is not known since when there has been no gateway
        held = Hold(max(mailing.datetime_start, mailing.created_at), NO_GATEWAY)
    elif (outage := channels.outage(mailing.gateway)) is not None:
        held = Hold(max(outage.since, mailing.datetime_start), outage.reason)
    else:
        return mailing
    return replace(mailing, held=held)


async def with_holds(
    connection: AsyncConnection, mailings: Sequence[Mailing], channels: Channels
) -> list[Mailing]:
    """Return mailings with `held` set to the reason why they run but do not send now.

    That is the reason of `with_hold`, or what the first messages that are left wait for. The cost
    does not grow with the number of messages.
    """
    mailings = [with_hold(mailing, channels) for mailing in mailings]
    ids = [
        mailing.id
        for mailing in mailings
        if mailing.status == "running" and not mailing.held and not mailing.sending_messages
    ]
    if not ids:
        return mailings
    waiting = await first_messages(connection, ids)
    now = database_clock.now()
    return [
        replace(mailing, held=_wait(mailing, waiting[mailing.id], channels, now))
        if mailing.id in waiting
        else mailing
        for mailing in mailings
    ]


async def with_current_hold(engine: AsyncEngine, mailing: Mailing, channels: Channels) -> Mailing:
    """Return a mailing as `with_holds` does, with a connection of its own.

    It is for mailings that were changed just now. The change is done, so without the database the
    answer is that of `with_hold`, and no error.
    """
    try:
        async with engine.connect() as connection:
            [mailing] = await with_holds(connection, [mailing], channels)
    except Exception as error:  # a lost database raises errors of several libraries
        if not is_unavailable(error):
            raise
        return with_hold(mailing, channels)
    return mailing


def _wait(
    mailing: Mailing, first: Sequence[FirstMessage], channels: Channels, now: datetime
) -> Hold | None:
    """Return the hold of a mailing whose first messages by route are `first`; None if one is due.

    A message that is due for a usable gateway is sent, and one that is due for another gateway
    waits for it. `since` is the last time that the mailing sent, or its start.
    """
    last_sent_at = first[0].last_sent_at
    if mailing.datetime_end <= now:
        return None
    usable = [row for row in first if channels.has_usable(row.gateways)]
    if any(row.due_at <= now for row in usable):
        return None
    since = max(mailing.datetime_start, mailing.created_at, last_sent_at or mailing.created_at)
    next_message = min(usable, key=lambda row: row.due_at, default=None)
    if next_message is None:
        return Hold(since, NO_GATEWAY_FOR_CLIENTS)
    until = next_message.due_at
    if any(row.due_at <= now for row in first):
        return Hold(since, NO_GATEWAY_FOR_CLIENTS, until)
    if next_message.is_retry:
        return Hold(since, RETRY_PAUSE, until)
    return Hold(since, WINDOW_CLOSED, until, next_message.time_zone)
