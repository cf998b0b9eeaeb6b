"""The background work of a mailing, and why it waits: an outage, or no gateway."""

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.gateway.channel import Channel
from mailer.mailing.model import Hold, Mailing, MailingNotFoundError


class BackgroundWork(msgspec.Struct, frozen=True):
    """The background work in progress for a mailing."""

    is_started: bool
    """Whether workers have started the mailing: its audience is being or has been enqueued."""
    is_enqueuing: bool
    """Whether some of its audience is not enqueued yet."""
    is_replanning: bool
    """Whether its messages are replanned after a change; nothing is sent meanwhile."""
    is_retrying: bool
    """Whether undelivered and unknown messages are being scheduled again."""
    is_expired: bool
    """Whether its retention has passed: its messages are deleted and only counts are kept."""


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


def with_hold(mailing: Mailing, channel: Channel | None) -> Mailing:
    """Return a mailing with `held` set when it runs but cannot send.

    `channel` is None when no gateway is configured. A mailing that is held because its database
    was restored stays as it is.
    """
    if mailing.status != "running" or mailing.held:
        return mailing
    if channel is None:
        held = Hold(mailing.datetime_start, NO_GATEWAY)
    elif (outage := channel.breaker.outage) is not None:
        held = Hold(outage.since, outage.reason)
    else:
        return mailing
    return msgspec.structs.replace(mailing, held=held)
