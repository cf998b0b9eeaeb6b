"""A receiver of webhooks on loopback; the specification's library checks every signature.

Also what tests do with webhooks: create endpoints, and deliver events in this process.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook as Verifier

from mailer.webhook import store
from mailer.webhook.addresses import AddressPolicy
from mailer.webhook.delivery import WebhookDelivery
from mailer.webhook.model import EVENT_TYPES
from mailer.webhook.sending import WEBHOOK_TIMEOUT, WebhookClient
from mailer.webhook.signature import show_secret
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import do, rows
from tests.fault_servers import ReceivedRequest, http_response, read_request, served

SECRET = bytes(range(32))
LOOPBACK = AddressPolicy(allows_private=True)


class Received(msgspec.Struct, frozen=True):
    """An event that a receiver got."""

    id: str
    type: str
    data: Any
    request: ReceivedRequest


class Receiver:
    """A receiver: it answers with the responses of `answers` in turn, the last one for ever."""

    def __init__(self, *answers: bytes, secret: bytes = SECRET, delay: float = 0.0) -> None:
        self.answers = list(answers) or [http_response(204)]
        self.verifier = Verifier(show_secret(secret))
        self.delay = delay
        self.events: list[Received] = []
        self.url = ""
        self.connections = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self._has_changed = asyncio.Condition()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer all requests on a connection."""
        self.connections += 1
        while True:
            request = await read_request(reader)
            payload = self.verifier.verify(request.body, request.headers)
            async with self._has_changed:
                received = Received(
                    request.headers["webhook-id"], payload["type"], payload["data"], request
                )
                self.events.append(received)
                self._has_changed.notify_all()
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                await asyncio.sleep(self.delay)
            finally:
                self.in_flight -= 1
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            writer.write(answer)
            await writer.drain()

    async def until(self, condition: Callable[["Receiver"], bool]) -> None:
        """Wait until a condition holds after an event has come."""
        async with asyncio.timeout(EVENT_TIMEOUT), self._has_changed:
            await self._has_changed.wait_for(lambda: condition(self))

    async def until_received(self, count: int) -> list[Received]:
        """Wait until so many events have come, and return them."""
        await self.until(lambda receiver: len(receiver.events) >= count)
        return self.events


@contextlib.asynccontextmanager
async def receiving(*answers: bytes, **options: Any) -> AsyncIterator[Receiver]:
    """Run a receiver on loopback."""
    receiver = Receiver(*answers, **options)
    async with served(receiver.talk) as receiver.url:
        yield receiver


async def add_webhook(
    engine: AsyncEngine, url: str, events: Sequence[str] = EVENT_TYPES, secret: bytes = SECRET
) -> int:
    """Create an endpoint and return its id."""
    values = {"name": "Shop", "url": url, "events": list(events), "secret": secret}
    return await do(engine, lambda db: store.create(db, values))


@contextlib.asynccontextmanager
async def delivering(
    engine: AsyncEngine,
    policy: AddressPolicy = LOOPBACK,
    timeout: float = WEBHOOK_TIMEOUT,  # noqa: ASYNC109  # of each request
) -> AsyncIterator[WebhookDelivery]:
    """Deliver events as a worker does, until the end of the block; an error fails the test."""
    errors: list[Exception] = []
    delivery = WebhookDelivery(engine, WebhookClient(policy, timeout), errors.append)
    task = asyncio.create_task(delivery.run())
    try:
        yield delivery
    finally:
        delivery.stop()
        await task
    assert not errors


async def deliveries(engine: AsyncEngine) -> list[dict[str, Any]]:
    """Return all deliveries with the types of their events, oldest first."""
    query = """
        SELECT webhook_delivery.*, type, data FROM webhook_delivery
        JOIN webhook_event ON webhook_event.id = event_id ORDER BY webhook_delivery.id"""
    return [dict(row) for row in await rows(engine, query)]


async def until_attempted(engine: AsyncEngine, count: int = 1) -> list[dict[str, Any]]:
    """Wait until `count` attempts in all are recorded, and return all deliveries."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        while True:
            found = await deliveries(engine)
            recorded = [
                row
                for row in found
                if row["status"] != "waiting" or (row["attempts"] and row["error"])
            ]
            if sum(row["attempts"] for row in recorded) >= count:
                return found
            await asyncio.sleep(0.02)
