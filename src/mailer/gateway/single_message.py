"""Send one message that belongs to no mailing, over a connection of its own."""

import asyncio
import time

from mailer.clock import database_clock, elapsed
from mailer.gateway.config import ConfiguredGateway
from mailer.gateway.http import HttpGateway
from mailer.gateway.protocol import DEFAULT_VALIDITY, Outcome, OutgoingMessage, Request
from mailer.validation import MAX_ID


def single_message(
    gateway: ConfiguredGateway,
    phone: str,
    text: str,
    *,
    message_id: int | None = None,
    sender: str | None = None,
) -> OutgoingMessage:
    """Return a message for a gateway, valid from now on.

    Default: an id that no message of a mailing has, the same for a second, and the sender of the
    gateway.
    """
    if message_id is None:
        # ids of messages are never so large, so the provider has not seen this one
        message_id = MAX_ID - int(time.time())  # noqa: TID251  # any number that is new
    return OutgoingMessage(
        id=message_id,
        phone=phone,
        text=text,
        sender=sender or gateway.config.sender or "",
        validity=gateway.profile.limits.validity.limit(DEFAULT_VALIDITY),
        valid_from=database_clock.now(),
    )


async def send_single(
    gateway: ConfiguredGateway, message: OutgoingMessage, seconds: float
) -> Outcome:
    """Send a message now, whatever the limits of the gateway are; wait at most `seconds`."""
    return await send_request(gateway, Request(message, elapsed() + seconds), seconds)


async def send_request(gateway: ConfiguredGateway, request: Request, seconds: float) -> Outcome:
    """Send a request now, over a connection of its own; abort it after `seconds`."""
    timer = asyncio.get_running_loop().call_later(seconds, request.abort, "timeout")
    try:
        async with HttpGateway(gateway) as client:
            return await client.send(request)
    finally:
        timer.cancel()
