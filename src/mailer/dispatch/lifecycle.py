"""Start mailings, enqueue their audiences, and finish them when due."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.clock import elapsed
from mailer.dispatch.failure import log_failure
from mailer.dispatch.loop_failures import LoopFailures
from mailer.mailing import audience, moving, replanning, resending, together
from mailer.mailing.passing_over import SKIP_TIME, PassedOver

log = structlog.get_logger()

Result = TypeVar("Result")

CHUNK = 5_000
"""Messages that one transaction ends."""
ASKED = 200
"""Mailings of which something became that one look asks whether they are through."""
IDLE = 1.0
"""Most seconds between looks at what is to be done: the backstop behind every signal."""
BREATH = 0.02
"""Least seconds between looks, when what is to be done is in other hands."""
TURNS: tuple[audience.Turn, ...] = ("newest", "begun", "behind")
AWAY = 0.5
"""Seconds between attempts while the database is away."""


class Lifecycle:
    """Moves every mailing on when its time has come. Several processes share the work."""

    def __init__(
        self,
        engine: AsyncEngine,
        failures: LoopFailures,
        on_messages: Callable[[list[int]], None],
        is_sending: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._failures = failures
        self._on_messages = on_messages
        self._is_sending = is_sending
        self._is_due = asyncio.Event()
        self._has_failed = False
        self._touched: dict[int, None] = {}
        self._after = 0
        self._turns = itertools.cycle(TURNS)
        self._passed_over = PassedOver()
        self._pass_over_until = 0.0
        self._large_at = 0.0

    def touch(self, mailing_ids: Iterable[int]) -> None:
        """Ask soon whether these mailings are through: something became of their messages."""
        for mailing_id in mailing_ids:
            self._touched.pop(mailing_id, None)
            self._touched[mailing_id] = None

    def wake(self) -> None:
        """Look at the mailings now."""
        self._is_due.set()

    async def run(self) -> None:
        """Move mailings on until cancelled."""
        while True:
            self._is_due.clear()
            self._has_failed = False
            pause = await self._advance()
            self._failures.record("lifecycle", has_failed=self._has_failed)
            if self._has_failed:
                pause = max(pause, AWAY)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):  # wait_for can miss that it is cancelled
                    await self._is_due.wait()

    async def _advance(self) -> float:
        """Do some of what is to be done; return the seconds until there may be more."""
        # the latest first: all that run are touched when the mailings are read
        asked = [self._touched.popitem()[0] for _ in range(min(ASKED, len(self._touched)))]
        after, self._after = self._after, 0
        if elapsed() >= self._pass_over_until:
            self._passed_over.clear()
            self._pass_over_until = elapsed() + SKIP_TIME
        to_do = await self._do(lambda db: moving.look(db, after, asked, self._passed_over))
        if to_do is None:
            self.touch(asked)
            return AWAY
        has_begun = to_do.begins and await self._begin()
        has_messages = (has_begun or to_do.takes) and await self._take()
        self._after = to_do.looked_up_to
        if to_do.replans:
            replan = partial(replanning.replan_chunk, passed_over=self._passed_over)
            has_messages |= bool(await self._do(replan))
        if to_do.retries:
            resend = partial(resending.resend_chunk, chunk=CHUNK, passed_over=self._passed_over)
            has_messages |= bool(await self._do(resend))
        has_cleared = to_do.clears and await self._do(lambda db: moving.clear(db, CHUNK))
        has_finished = to_do.finishes and await self._finish(after, asked)
        if has_begun or has_messages or has_cleared or has_finished:
            return 0
        if to_do.is_any:
            return max(BREATH, min(IDLE, self._large_at - elapsed()))
        return IDLE if to_do.next_moment is None else min(IDLE, max(BREATH, to_do.next_moment))

    async def _begin(self) -> bool:
        step = partial(moving.begin_due, passed_over=self._passed_over)
        begun = await self._do(step) or []
        for mailing_id in begun:
            log.info("mailing_started", mailing_id=mailing_id)
        return bool(begun)

    async def _take(self) -> bool:
        """Take a slice of the small audiences, each whole, and a chunk of a large one."""
        small = await self._do(partial(together.take_small, passed_over=self._passed_over)) or []
        self._tell(small)
        large = await self._take_large()
        return bool(small or large)

    async def _take_large(self) -> bool:
        began = elapsed()
        turn = "newest" if began < self._large_at else next(self._turns)
        one = await self._take_chunk(turn)
        if one is None and turn != "behind" and began >= self._large_at:
            one = await self._take_chunk("behind")
        if one is None:
            return False
        if one.is_large and self._is_sending():
            # it keeps the database busy: who sends meanwhile gets half of it
            now = elapsed()
            self._large_at = now + (now - began)
        self._tell([one])
        return True

    async def _take_chunk(self, turn: audience.Turn) -> audience.Taken | None:
        return await self._do(
            partial(audience.take_chunk, turn=turn, passed_over=self._passed_over)
        )

    def _tell(self, taken: list[audience.Taken]) -> None:
        for one in taken:
            if one.is_last:
                self.touch([one.mailing_id])
                log.info("audience_taken", mailing_id=one.mailing_id, clients=one.clients_count)
        if taken:
            self._on_messages([one.mailing_id for one in taken])

    async def _finish(self, after: int, asked: list[int]) -> bool:
        finished = await self._do(lambda db: moving.finish(db, after, asked))
        if finished is None or len(finished) == together.SLICE:
            self.touch(asked)  # there may be more of them
            finished = finished or []
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
