"""The event loop, watched from a thread: how late it answers, and what blocks it.

Everything runs on one loop: whatever keeps it keeps sending, the API and the health probes waiting.
"""

import asyncio
import contextlib
import inspect
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
LEAST_SAMPLE_INTERVAL = 0.001
"""Seconds between two samples of what the loop does, at least."""
MOST_FRAMES = 6
"""Innermost calls that are named of what blocks the loop."""


class Block(msgspec.Struct, frozen=True):
    """A time through which the event loop did not answer."""

    seconds: float
    """From when the loop was asked to when it answered: the block began a little earlier."""
    cpu_seconds: float
    """Processor time of the loop's thread meanwhile: on a busy machine it may just have waited."""
    step_seconds: float
    """Of it in one step of the loop, at least: many short steps may have been due together."""
    frames: str
    """The innermost calls of that step, as `file:line function`, the innermost first."""


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
        self._sample_interval = max(limit / 10, LEAST_SAMPLE_INTERVAL)
        self._report = report
        self._depth = 0
        """How many calls deep the loop runs a callback; 0 until it has run the first."""
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
                self._depth = self._depth or len(_stack(inspect.currentframe()))
                answered.set()

            asked_at, spent = time.monotonic(), time.clock_gettime(clock)
            try:
                loop.call_soon_threadsafe(answer)
            except RuntimeError:  # the loop is closed
                return
            steps = Steps(loop, self._depth)
            while not answered.wait(self._sample_interval):
                if self._stopping.is_set():
                    return
                frame = sys._current_frames().get(thread)  # noqa: SLF001  # documented, in spite of its name
                steps.sample(frame, time.clock_gettime(clock))
            seconds, cpu_seconds = ended[0] - asked_at, ended[1] - spent
            metrics.loop_answered(seconds)
            if seconds >= self._limit:
                self._report(
                    Block(
                        round(seconds, 4),
                        round(cpu_seconds, 4),
                        round(steps.longest, 4),
                        steps.frames,
                    )
                )


class Steps:
    """The steps that a loop takes until it answers, as far as samples tell them apart.

    A step is what runs until it lets the loop go on: a callback, or a task up to its next wait.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, depth: int) -> None:
        self._loop = loop
        self._depth = depth
        self._step: object = None
        self._since = 0.0
        self.longest = 0.0
        """Processor time from the first to the last sample of the longest, seconds."""
        self.frames = ""
        """Where the longest was when it was sampled last."""

    def sample(self, frame: FrameType | None, now: float) -> None:
        """Note where the loop is at a moment of its thread's processor time."""
        stack = _stack(frame)
        step: object = asyncio.current_task(self._loop)
        if step is None and 0 < self._depth <= len(stack):
            step = stack[-self._depth]
        if step is not self._step:
            self._step, self._since = step, now
        if step is not None and now - self._since >= self.longest:
            self.longest, self.frames = now - self._since, _named(stack)


def _stack(frame: FrameType | None) -> list[FrameType]:
    """Return the frames of a thread, the innermost first."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _named(stack: list[FrameType]) -> str:
    calls: list[str] = []
    for frame in stack[:MOST_FRAMES]:
        code = frame.f_code
        file = "/".join(code.co_filename.rsplit("/", 3)[1:])  # where it is installed says nothing
        calls.append(f"{file}:{frame.f_lineno} {code.co_qualname}")
    return ", ".join(calls)
