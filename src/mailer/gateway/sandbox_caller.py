"""Make the sandbox gateway's calls to mailer, as a provider does: later, signed, and repeatedly."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from http import HTTPStatus

import aiohttp
import msgspec
from yarl import URL

from mailer.gateway.callback import Callback
from mailer.gateway.profile import GatewayProfile
from mailer.gateway.sandbox_plans import PlannedCall
from mailer.gateway.sandbox_records import SandboxCall, SandboxCallCounts

MAX_CONCURRENT_CALLS = 50
"""Calls at the same time."""
MAX_WAITING_CALLS = 200_000
"""Calls that wait until they are due. Further ones are not made, and count as unanswered."""
CALL_TIMEOUT = 10.0
"""Seconds after which an attempt ends without a response."""
PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Seconds between the attempts of one call. A provider goes on for hours."""
MAX_CALL_ANSWER_BYTES = 1_024
"""Bytes of a response that are read."""
_REPEATED_STATUSES = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
"""Statuses of 4xx after which a call is repeated, as after 5xx."""

Sign = Callable[[Callback], Callback]
"""Adds the provider's signature to a call."""


class _Delivery(msgspec.Struct, eq=False):
    """A call and its attempts so far."""

    planned: PlannedCall
    started: int = 0
    attempts: int = 0
    status: int | None = None
    timer: asyncio.TimerHandle | None = None


class SandboxCaller:
    """Makes planned calls to mailer, at most `MAX_CONCURRENT_CALLS` at once.

    A call that is not answered with 200 and one of the bodies `answers` is repeated after each of
    `PAUSES`, unless mailer refuses it with a status of 4xx. `on_call` is called once for each call,
    when it has ended. A call that has not ended when the sandbox stops counts as unanswered.
    """

    def __init__(
        self,
        sign: Sign,
        answers: Collection[str],
        on_call: Callable[[SandboxCall], None] | None = None,
    ) -> None:
        self._sign = sign
        self._answers = {answer.encode() for answer in answers}
        self._on_call = on_call
        self._counts = dict.fromkeys(SandboxCallCounts.__struct_fields__, 0)
        self._waiting: set[_Delivery] = set()
        """Calls that have not ended."""
        self._due: asyncio.Queue[_Delivery] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    @property
    def counts(self) -> SandboxCallCounts:
        """Counts of the calls that have ended."""
        return SandboxCallCounts(**self._counts)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Make calls while the block lasts."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(CALL_TIMEOUT)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as self._session:
            self._tasks.update(
                asyncio.create_task(self._work()) for _ in range(MAX_CONCURRENT_CALLS)
            )
            try:
                yield
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.wait(self._tasks)
                self._tasks.clear()
                self._end_all()
        self._session = None

    def schedule(self, calls: Iterable[PlannedCall], lost: int = 0) -> None:
        """Make calls after their delays. `lost` receipts are counted, and not sent."""
        self._counts["lost"] += lost
        for planned in calls:
            delivery = _Delivery(planned)
            if self._session is None or len(self._waiting) >= MAX_WAITING_CALLS:
                self._end(delivery)
                continue
            self._waiting.add(delivery)
            self._wait(delivery, planned.delay)

    async def call_now(self, calls: Iterable[PlannedCall]) -> None:
        """Make the first attempt of each call, one after the other.

        They go on if the task that waits for them is cancelled.
        """
        deliveries = [_Delivery(planned) for planned in calls]
        self._waiting.update(deliveries)
        task = asyncio.create_task(self._attempt_all(deliveries))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _attempt_all(self, deliveries: Iterable[_Delivery]) -> None:
        for delivery in deliveries:
            await self._attempt(delivery)

    def _wait(self, delivery: _Delivery, seconds: float) -> None:
        if seconds <= 0:
            self._due.put_nowait(delivery)
            return
        loop = asyncio.get_running_loop()
        delivery.timer = loop.call_later(seconds, self._due.put_nowait, delivery)

    async def _work(self) -> None:
        while True:
            await self._attempt(await self._due.get())

    async def _attempt(self, delivery: _Delivery) -> None:
        """Make the call once. End it, or wait for the next attempt."""
        delivery.started = delivery.started or _now()
        delivery.attempts += 1
        delivery.status, is_taken = await self._request(delivery.planned.callback)
        status = delivery.status
        is_refused = (
            status is not None
            and HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
            and status not in _REPEATED_STATUSES
        )
        if is_taken or is_refused or delivery.attempts > len(PAUSES):
            self._end(delivery, is_taken=is_taken, is_refused=is_refused)
        else:
            self._wait(delivery, PAUSES[delivery.attempts - 1])

    async def _request(self, callback: Callback) -> tuple[int | None, bool]:
        """Return the status of the response, and whether it is what the provider expects."""
        assert self._session is not None  # noqa: S101  # inside of `run`
        signed = self._sign(callback)
        try:
            async with self._session.request(
                signed.method,
                URL(signed.url, encoded=True),  # exactly the URL that is signed
                data=signed.body or None,
                headers=signed.headers,
                allow_redirects=False,
            ) as response:
                body = await response.content.read(MAX_CALL_ANSWER_BYTES)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return None, False
        is_taken = response.status == HTTPStatus.OK and body in self._answers
        return response.status, is_taken

    def _end(
        self, delivery: _Delivery, *, is_taken: bool = False, is_refused: bool = False
    ) -> None:
        """Count a call that has ended, and pass its record to `on_call`."""
        self._waiting.discard(delivery)
        planned = delivery.planned
        taken = "replies" if planned.content == "reply" else "receipts"
        refused = "refused" if is_refused else "unanswered"
        self._counts[taken if is_taken else refused] += 1
        if self._on_call is None:
            return
        now = _now()
        self._on_call(
            SandboxCall(
                content=planned.content,
                message_id=planned.message_id,
                new_id=planned.new_id,
                part=planned.part,
                is_stop=planned.is_stop,
                is_repeat=planned.is_repeat,
                is_early=planned.is_early,
                started=delivery.started or now,
                ended=now,
                attempts=delivery.attempts,
                status=delivery.status,
                is_taken=is_taken,
            )
        )

    def _end_all(self) -> None:
        for delivery in list(self._waiting):
            if delivery.timer is not None:
                delivery.timer.cancel()
            self._end(delivery)


def _now() -> int:
    """Return the time in microseconds of Unix time."""
    return time.time_ns() // 1_000


def expected_answers(profile: GatewayProfile) -> set[str]:
    """Return the bodies with which the provider's calls must be answered."""
    parts = [part for part in (profile.receipt, profile.reply) if part is not None]
    return {part.response for part in parts}
