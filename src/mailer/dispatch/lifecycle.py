"""What becomes of mailings in time: they begin, their audience is taken, they end."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.clock import elapsed
from mailer.dispatch.failure import log_failure
from mailer.mailing import audience, moving, replanning, resending

log = structlog.get_logger()

Result = TypeVar("Result")

CHUNK = 5_000
"""Messages that one transaction ends."""
IDLE = 1.0
"""Most seconds between looks at what is to be done: the backstop behind every signal."""
BREATH = 0.02
"""Least seconds between looks, when what is to be done is in other hands."""
AWAY = 0.5
"""Seconds between attempts while the database is away."""


class Lifecycle:
    """Moves every mailing on when its time has come. Several processes share the work."""

    def __init__(
        self,
        engine: AsyncEngine,
        on_messages: Callable[[], None],
        is_sending: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._on_messages = on_messages
        self._is_sending = is_sending
        self._is_due = asyncio.Event()
        self._has_failed = False

    def wake(self) -> None:
        """Look at the mailings now."""
        self._is_due.set()

    async def run(self) -> None:
        """Move mailings on until cancelled."""
        while True:
            self._is_due.clear()
            self._has_failed = False
            pause = await self._advance()
            if self._has_failed:
                pause = max(pause, AWAY)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):  # wait_for can miss that it is cancelled
                    await self._is_due.wait()

    async def _advance(self) -> float:
        """Do some of what is to be done; return the seconds until there may be more."""
        started_at = elapsed()
        to_do = await self._do(moving.look)
        if to_do is None:
            return AWAY
        has_begun = to_do.begins and await self._begin()
        has_messages = False
        if has_begun or to_do.takes:
            has_messages |= await self._take()
        if to_do.replans:
            has_messages |= bool(await self._do(replanning.replan_chunk))
        if to_do.retries:
            has_messages |= bool(await self._do(lambda db: resending.resend_chunk(db, CHUNK)))
        if has_messages:
            self._on_messages()
        has_cleared = to_do.clears and await self._do(lambda db: moving.clear(db, CHUNK))
        has_finished = to_do.finishes and await self._finish()
        if has_begun or has_messages or has_cleared or has_finished:
            # to take an audience keeps the database busy: who sends meanwhile gets half of it
            return elapsed() - started_at if self._is_sending() else 0
        if to_do.is_any:
            return BREATH
        return IDLE if to_do.next_moment is None else min(IDLE, max(BREATH, to_do.next_moment))

    async def _begin(self) -> bool:
        has_begun = False
        while (mailing_id := await self._do(moving.begin_due)) is not None:
            log.info("mailing_started", mailing_id=mailing_id)
            has_begun = True
        return has_begun

    async def _take(self) -> bool:
        taken = await self._do(audience.take_chunk)
        if taken is not None and taken.is_last:
            log.info("audience_taken", mailing_id=taken.mailing_id, clients=taken.clients_count)
        return taken is not None

    async def _finish(self) -> bool:
        finished = await self._do(moving.finish) or []
        for mailing_id, status in finished:
            log.info("mailing_ended", mailing_id=mailing_id, status=status)
        return bool(finished)

    async def _do(self, step: Callable[[AsyncConnection], Awaitable[Result]]) -> Result | None:
        """Return what a step returns; None when it fails, which stops no other step."""
        try:
            async with self._engine.begin() as connection:
                return await step(connection)
        except Exception as error:
            log_failure(error, at="lifecycle")
            self._has_failed = True
            return None
