"""Replies of clients in the soak: stop words, start words, and repeats of both.

A client sends them one after the other, through the gateway `json`. Each call is repeated until
mailer has answered it with 200, as a provider does.
"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from itertools import pairwise

import aiohttp
import asyncpg
import msgspec

from soaking.forwarder import Forwarder
from soaking.journal import Journal, KeywordReply, RandomSource
from soaking.sandbox import CALLBACK_SECRET

STOP_WORDS = ("STOP", "stop", "Стоп.", " Unsubscribe ")
START_WORDS = ("START", "старт")
TIMEOUT = aiohttp.ClientTimeout(total=10)
RECIPIENT = "keywords"
"""The number to which these replies go, and no others."""
RETRY_SECONDS = 0.5
"""Seconds until an unanswered call is repeated."""
REPEAT_SHARE = 0.3
"""Share of the stop words whose call the provider repeats after the start word: a repeat must
change nothing."""


class OptOut(msgspec.Struct, frozen=True):
    """A time in which a client was opted out. Times are Unix times.

    The opt-out became valid between `began` and `taken`, its end between `ends` and `may_end`.
    """

    client_id: int
    began: float
    taken: float
    ends: float
    may_end: float


class Client(msgspec.Struct, frozen=True):
    """A client who replies."""

    id: int
    phone: str


async def inject_replies(
    database_url: str, forwarder: Forwarder, journal: Journal, rng: RandomSource
) -> None:
    """Let random clients opt out, and in again some seconds later."""
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch("SELECT id, phone FROM client ORDER BY id")
    await connection.close()
    clients = [Client(*row) for row in rows]
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session, asyncio.TaskGroup() as tasks:
        replies = _Replies(session, forwarder.url, journal)
        while await journal.sleep(rng.uniform(0.1, 0.5)):
            client = clients.pop(rng.randrange(len(clients)))  # each replies only once at a time
            tasks.create_task(_reply(replies, client, clients, rng.substream(client.id)))


async def _reply(
    replies: "_Replies", client: Client, clients: list[Client], rng: RandomSource
) -> None:
    """Let a client opt out and in, and put it back among the others."""
    await replies.opt_out_and_in(client, rng)
    clients.append(client)


class _Replies:
    """Sends replies of clients, and records them in the journal."""

    def __init__(self, session: aiohttp.ClientSession, url: str, journal: Journal) -> None:
        self._session = session
        self._url = f"{url}/gateways/json/inbound?secret={CALLBACK_SECRET}"
        self._journal = journal
        self._count = 0

    async def opt_out_and_in(self, client: Client, rng: RandomSource) -> None:
        """Send a stop word of a client, and a start word later."""
        stop_id = await self._reply(client, rng.choice(STOP_WORDS), is_stop=True)
        if stop_id is None or not await self._journal.sleep(rng.uniform(2, 20)):
            return
        start_id = await self._reply(client, rng.choice(START_WORDS), is_stop=False)
        if start_id is not None and rng.random() < REPEAT_SHARE:
            await self._send(client, stop_id, "STOP")
        await self._journal.sleep(rng.uniform(1, 5))

    async def _reply(self, client: Client, word: str, *, is_stop: bool) -> str | None:
        """Send a word until it is answered with 200; return its id, or None if that never was."""
        self._count += 1
        # a client has no two replies at once, but many in the soak
        reply_id = f"{client.id}-{self._count}"
        reply = KeywordReply(client.id, is_stop, time.time())
        self._journal.keyword_replies.append(reply)
        while not await self._send(client, reply_id, word):
            if not await self._journal.sleep(RETRY_SECONDS):
                return None
        reply.ended = time.time()
        return reply_id

    async def _send(self, client: Client, reply_id: str, word: str) -> bool:
        """Make one call; return whether it was answered with 200."""
        body = {"reply_id": reply_id, "from": client.phone, "to": RECIPIENT, "text": word}
        try:
            async with self._session.post(self._url, json=body) as response:
                await response.read()
                return response.status == HTTPStatus.OK
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False


def find_opt_outs(replies: Iterable[KeywordReply]) -> Iterator[OptOut]:
    """Yield the opt-outs of all clients: from each stop word to the next start word."""
    by_client: dict[int, list[KeywordReply]] = defaultdict(list)
    for reply in replies:
        by_client[reply.client_id].append(reply)
    for client_id, own in by_client.items():
        for stop, start in pairwise([*own, None]):
            if stop is not None and stop.is_stop:
                ends = math.inf if start is None else start.began
                may_end = math.inf if start is None else start.ended
                yield OptOut(client_id, stop.began, stop.ended, ends, may_end)
