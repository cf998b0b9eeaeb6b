"""Send one message that belongs to no mailing, over a connection of its own."""

import asyncio
import time

from mailer.clock import database_clock, elapsed
from mailer.gateway.config import ConfiguredGateway
from mailer.gateway.http import HttpGateway
from mailer.gateway.protocol import DEFAULT_VALIDITY, Outcome, OutgoingMessage, Request
from mailer.validation import MAX_ID


async def send_single(gateway: ConfiguredGateway, phone: str, text: str, seconds: float) -> Outcome:
    """Send a message now, whatever the limits of the gateway are; wait at most `seconds`."""
    message = OutgoingMessage(
        # ids of messages are never so large, so the provider has not seen this one
        id=MAX_ID - int(time.time()),  # noqa: TID251  # any number that is new
        phone=phone,
        text=text,
        sender=gateway.config.sender or "",
        validity=gateway.profile.limits.validity.limit(DEFAULT_VALIDITY),
        valid_from=database_clock.now(),
    )
    return await send_request(gateway, Request(message, elapsed() + seconds), seconds)


async def send_request(gateway: ConfiguredGateway, request: Request, seconds: float) -> Outcome:
    """Send a request now, over a connection of its own; abort it after `seconds`."""
    timer = asyncio.get_running_loop().call_later(seconds, request.abort, "timeout")
    try:
        async with HttpGateway(gateway) as client:
            return await client.send(request)
    finally:
        timer.cancel()
