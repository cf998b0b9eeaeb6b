"""Measure the event loop's lag from a thread, and find the code that blocks the loop.

Everything runs on one loop. Code that blocks it delays sending, the API and the health probes.
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

PROBE_INTERVAL = 0.1
"""Seconds between two probes of the loop."""
DEBUG_PROBE_INTERVAL = 0.01
"""Seconds between two probes at log level debug. Every block that lasts longer is found."""
MIN_REPORTED_BLOCK = 0.05
"""Seconds from which on a block is reported."""
MIN_SAMPLE_INTERVAL = 0.001
"""Least seconds between two samples of the stack of the loop's thread."""
MAX_FRAMES = 6
"""Most calls in a report, from the innermost outwards."""


class Block(msgspec.Struct, frozen=True):
    """A period in which the event loop did not run a probe."""

    seconds: float
    """From the request of the probe to its run. The block itself began a little earlier."""
    cpu_seconds: float
    """CPU time of the loop's thread in this period. On a busy machine it may be much less than
    `seconds`: the thread did not run all the time."""
    step_seconds: float
    """Lower bound of the CPU time of the longest single step. It is much less than `cpu_seconds`
    when many short steps were due together."""
    frames: str
    """The innermost calls of the longest step, as `file:line function`, innermost first."""


def report_block(block: Block) -> None:
    """Log a block at level debug only: a busy or suspended machine causes blocks, too."""
    log.debug("event_loop_blocked", **msgspec.structs.asdict(block))


class LoopMonitor:
    """Probes the running event loop from a thread of its own.

    A probe is a callback that the loop has to run, one every `interval` seconds. The delay of each
    probe is recorded in the metric `mailer_event_loop_lag_seconds`. A delay of `limit` seconds or
    more is reported as a block.
    """

    def __init__(
        self,
        *,
        interval: float = PROBE_INTERVAL,
        limit: float = MIN_REPORTED_BLOCK,
        report: Callable[[Block], None] = report_block,
    ) -> None:
        self._interval = interval
        self._limit = limit
        self._sample_interval = max(limit / 10, MIN_SAMPLE_INTERVAL)
        self._report = report
        self._depth = 0
        """Stack depth at which the loop runs a callback; 0 until the first probe has run."""
        self._stopping = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Monitor the loop that runs in the calling thread, inside a `with` block."""
        loop, thread = asyncio.get_running_loop(), threading.get_ident()
        threading.Thread(
            target=self._watch, args=(loop, thread), name="loop-monitor", daemon=True
        ).start()
        try:
            yield
        finally:
            self._stopping.set()  # without a join: it would block the loop

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        cpu_clock = time.pthread_getcpuclockid(thread)
        while not self._stopping.wait(self._interval):
            has_run, end_times = threading.Event(), [0.0, 0.0]

            def probe(
                has_run: threading.Event = has_run, end_times: list[float] = end_times
            ) -> None:
                # read the clocks here: on a busy machine the other thread may wake up much later
                end_times[:] = time.monotonic(), time.clock_gettime(cpu_clock)
                self._depth = self._depth or len(_stack(inspect.currentframe()))
                has_run.set()

            start, cpu_start = time.monotonic(), time.clock_gettime(cpu_clock)
            try:
                loop.call_soon_threadsafe(probe)
            except RuntimeError:  # the loop is closed
                return
            steps = Steps(loop, self._depth)
            while not has_run.wait(self._sample_interval):
                if self._stopping.is_set():
                    return
                frame = sys._current_frames().get(thread)  # noqa: SLF001  # documented, although its name begins with an underscore
                steps.sample(frame, time.clock_gettime(cpu_clock))
            seconds, cpu_seconds = end_times[0] - start, end_times[1] - cpu_start
            metrics.loop_lag_measured(seconds)
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
    """The steps of a loop between two probes, distinguished by samples of its stack.

    A step is the code that runs before the loop gets control back: a callback, or a task up to its
    next `await` that waits.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, depth: int) -> None:
        self._loop = loop
        self._depth = depth
        self._step: object = None
        self._since = 0.0
        self.longest = 0.0
        """Seconds of CPU time from the first to the last sample of the longest step."""
        self.frames = ""
        """The innermost calls of the longest step at its last sample."""

    def sample(self, frame: FrameType | None, now: float) -> None:
        """Record a sample: the innermost frame of the thread, and its CPU time `now` in seconds."""
        stack = _stack(frame)
        step: object = asyncio.current_task(self._loop)
        if step is None and 0 < self._depth <= len(stack):
            step = stack[-self._depth]
        if step is not self._step:
            self._step, self._since = step, now
        if step is not None and now - self._since >= self.longest:
            self.longest, self.frames = now - self._since, _describe(stack)


def _stack(frame: FrameType | None) -> list[FrameType]:
    """Return the frames of a thread, the innermost first."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _describe(stack: list[FrameType]) -> str:
    calls: list[str] = []
    for frame in stack[:MAX_FRAMES]:
        code = frame.f_code
        file = "/".join(code.co_filename.rsplit("/", 3)[1:])  # without the path of the installation
        calls.append(f"{file}:{frame.f_lineno} {code.co_qualname}")
    return ", ".join(calls)
