"""Receipts of the gateway `json` that contradict each other, such as a failure before `delivered`.

A sandbox gateway says only one of both about a message. Real providers sometimes say both, in any
order. So the soak sends such receipts itself, about random messages that `json` has accepted. Each
call is repeated until mailer has answered it with 200.
"""

import asyncio
import time
from http import HTTPStatus

import aiohttp
import asyncpg

from mailer.db.engine import is_unavailable
from soaking.forwarder import Forwarder
from soaking.journal import Journal, RandomSource, Receipt
from soaking.sandbox import CALLBACK_SECRET

ORDERS = (("failed", "delivered"), ("failed", "delivered"), ("delivered", "failed"), ("failed",))
"""What the gateway says about a message, one after the other."""
# Of the last changes, so that many messages are still `sent`, and some even claimed again.
SELECT_ACCEPTED = """
    SELECT DISTINCT message_id FROM soak.message_change
    WHERE n > (SELECT max(n) FROM soak.message_change) - 1000
        AND gateway = 'json' AND status = 'sent'
    ORDER BY message_id"""
TIMEOUT = aiohttp.ClientTimeout(total=10)
RETRY_SECONDS = 0.5
"""Seconds until an unanswered call is repeated."""


async def inject_contradictions(
    database_url: str, forwarder: Forwarder, journal: Journal, rng: RandomSource
) -> None:
    """Send contradictory receipts about random accepted messages, at random intervals."""
    seen: set[int] = set()
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session, asyncio.TaskGroup() as tasks:
        provider = _Provider(session, forwarder.url, journal)
        while await journal.sleep(rng.uniform(0.3, 1)):
            accepted = await _read_accepted(database_url)
            if new := [message_id for message_id in accepted if message_id not in seen]:
                message_id = rng.choice(new)
                seen.add(message_id)
                tasks.create_task(provider.report(message_id, rng.substream(message_id)))


async def _read_accepted(database_url: str) -> list[int]:
    """Return messages that `json` has just accepted; none while the database is unavailable."""
    try:
        connection = await asyncpg.connect(database_url, timeout=1)
        try:
            return [row[0] for row in await connection.fetch(SELECT_ACCEPTED)]
        finally:
            await connection.close()
    except Exception as error:  # a connection that is lost early raises many kinds of errors
        if not is_unavailable(error):
            raise
        return []


class _Provider:
    """Sends receipts, and records them in the journal."""

    def __init__(self, session: aiohttp.ClientSession, url: str, journal: Journal) -> None:
        self._session = session
        self._url = f"{url}/gateways/json/receipts?secret={CALLBACK_SECRET}"
        self._journal = journal

    async def report(self, message_id: int, rng: RandomSource) -> None:
        """Send receipts about a message, one after the other."""
        for content in rng.choice(ORDERS):
            is_taken = await self._send_until_taken(message_id, content)
            if not is_taken or not await self._journal.sleep(rng.uniform(0, 4)):
                return

    async def _send_until_taken(self, message_id: int, content: str) -> bool:
        """Send a receipt until it is answered with 200; return whether it was."""
        started, attempts, is_taken = time.time(), 0, False
        while not is_taken:
            attempts += 1
            is_taken = await self._send({"id": message_id, "status": content})
            if not is_taken and not await self._journal.sleep(RETRY_SECONDS):
                break
        self._journal.receipts.append(
            Receipt(message_id, "json", content, "", started, time.time(), attempts, is_taken)
        )
        return is_taken

    async def _send(self, receipt: dict[str, object]) -> bool:
        """Make one call; return whether it was answered with 200."""
        try:
            async with self._session.post(self._url, json=receipt) as response:
                await response.read()
                return response.status == HTTPStatus.OK
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
