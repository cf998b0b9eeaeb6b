"""What workers do for a mailing in the background, and why a running mailing does not send."""

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.gateway.channel import Channels
from mailer.mailing.model import Hold, Mailing, MailingNotFoundError


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
"""Reason of a hold: no gateway is configured."""


def with_hold(mailing: Mailing, channels: Channels) -> Mailing:
    """Return a mailing with `held` set to the reason why it runs but cannot send.

    It cannot if none of the gateways that may take its messages is usable. A mailing that sends, or
    is held already because its database was restored, is returned as it is.
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
    return msgspec.structs.replace(mailing, held=held)
