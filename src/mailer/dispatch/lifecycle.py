"""What becomes of mailings in time: they begin, their audience is taken, they end."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.dispatch.failure import log_failure
from mailer.mailing import audience, store

log = structlog.get_logger()

Result = TypeVar("Result")

CHUNK = 5_000
"""Messages that one transaction ends."""
IDLE = 1.0
"""Most seconds between looks at what begins or ends: the backstop behind every signal."""
BREATH = 0.01
"""Least seconds between looks, when what is due is in other hands."""
AWAY = 0.5
"""Seconds between attempts while the database is away."""


class Lifecycle:
    """Moves every mailing on when its time has come. Several processes share the work."""

    def __init__(self, engine: AsyncEngine, on_messages: Callable[[], None]) -> None:
        self._engine = engine
        self._on_messages = on_messages
        self._is_due = asyncio.Event()

    def wake(self) -> None:
        """Look at the mailings now."""
        self._is_due.set()

    async def run(self) -> None:
        """Move mailings on until cancelled."""
        while True:
            self._is_due.clear()
            try:
                pause = await self._advance()
            except Exception as error:
                log_failure(error, at="lifecycle")
                pause = AWAY
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_due.wait(), pause)

    async def _advance(self) -> float:
        """Do what is due, and return the seconds until there may be more to do."""
        while (mailing_id := await self._do(store.begin_due)) is not None:
            log.info("mailing_started", mailing_id=mailing_id)
        has_taken = await self._do(audience.take_chunk)
        if has_taken:
            self._on_messages()
        has_expired = await self._do(lambda connection: store.expire(connection, CHUNK))
        for mailing_id in await self._do(store.finish):
            log.info("mailing_finished", mailing_id=mailing_id)
        if has_taken or has_expired:
            return 0
        next_moment = await self._do(store.seconds_to_next_moment)
        return IDLE if next_moment is None else min(IDLE, max(BREATH, next_moment))

    async def _do(self, step: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        async with self._engine.begin() as connection:
            return await step(connection)
