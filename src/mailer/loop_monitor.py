"""The event loop, watched from a thread: how late it answers, and what blocks it.

Everything runs on one loop: whatever keeps it keeps sending, the API and the health probes waiting.
"""

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import msgspec
import structlog

from mailer import metrics

log = structlog.get_logger()

INTERVAL = 0.1
"""Seconds between two looks at the loop."""
DEBUG_INTERVAL = 0.01
"""Seconds between two looks at log level debug: a block is found unless it is shorter."""
LIMIT = 0.05
"""Seconds of a block that is reported."""
MOST_FRAMES = 6
"""Innermost calls that are named of what blocks the loop."""


class Block(msgspec.Struct, frozen=True):
    """A time through which the event loop ran nothing but what it was at."""

    seconds: float
    """From when the loop was asked to when it answered: the block began a little earlier."""
    cpu_seconds: float
    """Processor time of the loop's thread meanwhile: on a busy machine it may just have waited."""
    frames: str
    """The innermost calls that the loop was in, as `file:line function`, the innermost first."""


def report_block(block: Block) -> None:
    """Log a block; at log level debug, since a busy or frozen machine makes blocks of its own."""
    log.debug("event_loop_blocked", **msgspec.structs.asdict(block))


class LoopMonitor:
    """Asks the running event loop for a sign of life again and again, from a thread of its own.

    Each answer's delay is counted in the metric `mailer_event_loop_lag_seconds`; one of `limit`
    seconds or more is reported. The loop itself only runs one callback each `interval` seconds.
    """

    def __init__(
        self,
        *,
        interval: float = INTERVAL,
        limit: float = LIMIT,
        report: Callable[[Block], None] = report_block,
    ) -> None:
        self._interval = interval
        self._limit = limit
        self._report = report
        self._stopping = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch the loop that runs in this thread."""
        loop, thread = asyncio.get_running_loop(), threading.get_ident()
        threading.Thread(
            target=self._watch, args=(loop, thread), name="loop-monitor", daemon=True
        ).start()
        try:
            yield
        finally:
            self._stopping.set()  # and nobody waits for the thread: that would block the loop

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        clock = time.pthread_getcpuclockid(thread)
        while not self._stopping.wait(self._interval):
            answered, ended = threading.Event(), [0.0, 0.0]

            def answer(answered: threading.Event = answered, ended: list[float] = ended) -> None:
                # read here: this thread may come to know of it much later on a busy machine
                ended[:] = time.monotonic(), time.clock_gettime(clock)
                answered.set()

            asked_at, spent = time.monotonic(), time.clock_gettime(clock)
            try:
                loop.call_soon_threadsafe(answer)
            except RuntimeError:  # the loop is closed
                return
            frames = ""
            if not answered.wait(self._limit):
                frames = _innermost(sys._current_frames().get(thread))  # noqa: SLF001  # documented, in spite of its name
                while not answered.wait(self._limit):
                    if self._stopping.is_set():
                        return
            seconds, cpu_seconds = ended[0] - asked_at, ended[1] - spent
            metrics.loop_answered(seconds)
            if seconds >= self._limit:
                self._report(Block(round(seconds, 4), round(cpu_seconds, 4), frames))


def _innermost(frame: FrameType | None) -> str:
    calls: list[str] = []
    while frame is not None and len(calls) < MOST_FRAMES:
        code = frame.f_code
        file = "/".join(code.co_filename.rsplit("/", 3)[1:])  # where it is installed says nothing
        calls.append(f"{file}:{frame.f_lineno} {code.co_qualname}")
        frame = frame.f_back
    return ", ".join(calls)
