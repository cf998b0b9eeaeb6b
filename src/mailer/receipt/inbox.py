"""The inbox: stores what providers report, many calls together.

A call is answered after its receipts and replies are stored. While transactions are running, the
next calls gather, and are then stored together. So a burst of calls costs few transactions.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import datetime

import asyncpg
import msgspec
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer import metrics
from mailer.clock import database_clock
from mailer.db.engine import (
    SET_INDEX_ORDER_PLANS,
    asyncpg_connection,
    is_rolled_back,
    is_unavailable,
)
from mailer.errors import UnavailableError
from mailer.gateway.callback import CallbackContent, Reply
from mailer.receipt.store import ReceivedReceipt, apply_receipts
from mailer.reply.rules import ReplyRules
from mailer.reply.store import add_replies

MAX_INBOX_ITEMS = 5_000
"""Receipts and replies that wait to be stored. More are refused, and the providers repeat them."""
MAX_INBOX_BATCH = 500
"""Most receipts and replies in one transaction."""
MAX_CALL_BATCH = 100
"""Most calls in one transaction. A provider has a limited number of connections, and calls again on
each after the answer. So calls must be read while others are stored, and not all be in one batch.
"""
MAX_WRITERS = 2
"""Transactions at the same time. While one waits for the database, the other prepares its batch."""
GATHER_SECONDS = 0.002
"""How long a batch waits for further calls, so that the calls that follow the answers of the last
batch share a transaction, and not the first of them has one of its own."""


class InboxFullError(UnavailableError):
    """Too many receipts wait to be stored; send them again."""


class _Item(msgspec.Struct):
    """What one call has brought, and the future that ends when it is stored."""

    gateway: str
    content: CallbackContent
    at: datetime
    stored: asyncio.Future[None]


class Inbox:
    """A bounded queue of what providers report, and the tasks that store it.

    `rules` say what replies do.
    """

    def __init__(self, engine: AsyncEngine, rules: ReplyRules) -> None:
        self._engine = engine
        self._rules = rules
        self._waiting: deque[_Item] = deque()
        self._size = 0
        self._writing: set[asyncio.Task[None]] = set()
        self._reply_lock = asyncio.Lock()

    def store(self, gateway: str, content: CallbackContent) -> asyncio.Future[None]:
        """Store what a call of `gateway` has brought; the future ends when it is committed.

        It fails with `InboxFullError`, or with the error of the database.
        """
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not content.size:
            stored.set_result(None)
            return stored
        if self._size >= MAX_INBOX_ITEMS:
            stored.set_exception(InboxFullError())
            return stored
        item = _Item(gateway, content, database_clock.now(), stored)
        self._waiting.append(item)
        self._size += item.content.size
        # a task that has ended is still in the set until the event loop calls `discard`
        if sum(not task.done() for task in self._writing) < MAX_WRITERS:
            task = asyncio.create_task(self._write_all())
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)
        return stored

    async def _write_all(self) -> None:
        while self._waiting:
            if len(self._waiting) < MAX_CALL_BATCH:
                await asyncio.sleep(GATHER_SECONDS)
            if batch := self._take_batch():
                await self._write(batch)

    def _take_batch(self) -> list[_Item]:
        """Return the calls of the next transaction; none if the other writer has taken all."""
        batch: list[_Item] = []
        size = 0
        while self._waiting and size < MAX_INBOX_BATCH and len(batch) < MAX_CALL_BATCH:
            item = self._waiting.popleft()
            batch.append(item)
            size += item.content.size
        self._size -= size
        return batch

    async def _write(self, batch: list[_Item]) -> None:
        """Store a batch; if that fails, each call apart, so that one affects no other."""
        try:
            await self._store_again_after_deadlock(batch)
        except Exception as error:  # noqa: BLE001  # it is raised in the calls
            if len(batch) > 1 and not is_unavailable(error):
                for item in batch:
                    await self._write([item])
                return
            for item in batch:
                if not item.stored.done():
                    item.stored.set_exception(error)
        else:
            for item in batch:
                if not item.stored.done():
                    item.stored.set_result(None)

    async def _store_again_after_deadlock(self, batch: Sequence[_Item]) -> None:
        """Store a batch, once more if it was rolled back: some providers do not repeat a call."""
        try:
            await self._store(batch)
        except (DBAPIError, asyncpg.PostgresError) as error:
            if not is_rolled_back(error):
                raise
            await self._store(batch)

    async def _store(self, batch: Sequence[_Item]) -> None:
        """Store the receipts, and then the replies of each gateway, in transactions of their own.

        A stop word locks the messages that it cancels. In the transaction of other changes, which
        have locked the counts of a mailing, it could wait in a circle with a claim. If a later
        transaction fails, the calls are repeated, and receipts that are stored change nothing.
        Transactions of replies do not overlap: the parts of a reply must see each other.
        """
        received = [
            ReceivedReceipt(item.gateway, receipt, item.at)
            for item in batch
            for receipt in item.content.receipts
        ]
        if received:
            async with self._engine.connect() as connection:
                driver = await asyncpg_connection(connection)
                async with driver.transaction():
                    await driver.execute(SET_INDEX_ORDER_PLANS)
                    result = await apply_receipts(driver, received)
            metrics.receipts_stored(result.applied, result.early, result.ignored)
        for gateway, replies in _replies_by_gateway(batch).items():
            async with self._reply_lock, self._engine.begin() as connection:
                await add_replies(connection, gateway, replies, batch[-1].at, self._rules)
            metrics.replies_stored(gateway, len(replies))


def _replies_by_gateway(batch: Sequence[_Item]) -> dict[str, list[Reply]]:
    """Return the replies of a batch by gateway."""
    replies: dict[str, list[Reply]] = {}
    for item in batch:
        if item.content.replies:
            replies.setdefault(item.gateway, []).extend(item.content.replies)
    return replies
