"""Measure the event loop's lag from a thread, and find the code that blocks the loop.

Everything runs on one event loop. Code that runs long without an `await` blocks it: it delays
sending, the API and the health probes.
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
"""Seconds between two probes at log level debug. A longer block always meets a probe."""
MIN_REPORTED_BLOCK = 0.05
"""Seconds. Shorter blocks are not reported."""
SAMPLES_PER_BLOCK = 10
"""Samples of the stack of the loop's thread in the shortest block that is reported."""
MIN_SAMPLE_INTERVAL = 0.001
"""Seconds between two samples, at least."""
MAX_FRAMES = 6
"""Number of calls in a report, from the innermost outwards."""


class Block(msgspec.Struct, frozen=True):
    """A period in which the event loop was busy and could not run a probe."""

    seconds: float
    """From the request of the probe to its run. The block itself started a little earlier."""
    cpu_seconds: float
    """CPU time of the loop's thread in this period. It is much less than `seconds` if the machine
    was busy with other processes."""
    step_seconds: float
    """CPU time of the longest single step, at least (`Steps` says what a step is). It is much less
    than `cpu_seconds` if not one step was long, but many were due together."""
    frames: str
    """The innermost calls of the longest step, as `file:line function`, innermost first."""


def report_block(block: Block) -> None:
    """Log a block. Only at level debug, because a busy or suspended machine causes blocks too."""
    log.debug("event_loop_blocked", **msgspec.structs.asdict(block))


class LoopMonitor:
    """Probes the running event loop from a thread of its own.

    A probe is a callback that the loop has to run, one every `interval` seconds. The delay of each
    probe is recorded in the metric `mailer_event_loop_lag_seconds`. A delay of `limit` seconds or
    more is a block, for which `report` is called, in the monitor's thread. To find the code that
    blocks, the monitor samples the stack of the loop's thread while it waits for a probe.
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
        self._sample_interval = max(limit / SAMPLES_PER_BLOCK, MIN_SAMPLE_INTERVAL)
        self._report = report
        self._callback_depth = 0
        """Number of frames on the stack when the loop runs a callback; 0 until the first probe has
        run."""
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
        """Probe `loop`, which runs in `thread`, until the monitor is stopped or the loop closed."""
        cpu_clock = time.pthread_getcpuclockid(thread)
        while not self._stopping.wait(self._interval):
            has_run, run_times = threading.Event(), [0.0, 0.0]

            # the defaults make each probe keep the objects of its own iteration
            def probe(
                has_run: threading.Event = has_run, run_times: list[float] = run_times
            ) -> None:
                # read the clocks here: on a busy machine the other thread may wake up much later
                run_times[:] = time.monotonic(), time.clock_gettime(cpu_clock)
                # a probe is a callback itself
                self._callback_depth = self._callback_depth or len(_stack(inspect.currentframe()))
                has_run.set()

            requested_at, cpu_time_before = time.monotonic(), time.clock_gettime(cpu_clock)
            try:
                loop.call_soon_threadsafe(probe)
            except RuntimeError:  # the loop is closed
                return
            steps = Steps(loop, self._callback_depth)
            while not has_run.wait(self._sample_interval):
                if self._stopping.is_set():
                    return
                frame = sys._current_frames().get(thread)  # noqa: SLF001  # documented, although its name begins with an underscore
                steps.sample(frame, time.clock_gettime(cpu_clock))
            run_at, cpu_time_after = run_times
            seconds = run_at - requested_at
            metrics.loop_lag_measured(seconds)
            if seconds >= self._limit:
                self._report(
                    Block(
                        seconds=round(seconds, 4),
                        cpu_seconds=round(cpu_time_after - cpu_time_before, 4),
                        step_seconds=round(steps.longest, 4),
                        frames=steps.frames,
                    )
                )


class Steps:
    """The steps of a loop between two probes, distinguished by samples of its thread's stack.

    A step is the code that runs before the loop gets control back: a callback, or a task up to its
    next `await` that waits. `callback_depth` is the number of frames on the stack when the loop
    runs a callback; 0 when it is unknown.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, callback_depth: int) -> None:
        self._loop = loop
        self._callback_depth = callback_depth
        self._step: object = None
        """Identifies the step of the last sample: its task, or the frame of its callback."""
        self._first_sample = 0.0
        """CPU time at the first sample of that step."""
        self.longest = 0.0
        """Seconds of CPU time from the first to the last sample of the longest step."""
        self.frames = ""
        """The innermost calls of the longest step at its last sample."""

    def sample(self, frame: FrameType | None, cpu_time: float) -> None:
        """Record a sample: the thread's innermost frame, and its CPU time so far in seconds."""
        stack = _stack(frame)
        step: object = asyncio.current_task(self._loop)
        if step is None and 0 < self._callback_depth <= len(stack):
            step = stack[-self._callback_depth]  # the frame that the loop itself has called
        if step is not self._step:
            self._step, self._first_sample = step, cpu_time
        duration = cpu_time - self._first_sample
        if step is not None and duration >= self.longest:
            self.longest, self.frames = duration, _describe(stack)


def _stack(frame: FrameType | None) -> list[FrameType]:
    """Return all frames of a thread from its innermost one, `frame`, outwards."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _describe(stack: list[FrameType]) -> str:
    """Return the innermost calls of a stack, as `file:line function`."""
    calls: list[str] = []
    for frame in stack[:MAX_FRAMES]:
        code = frame.f_code
        file = "/".join(code.co_filename.rsplit("/", 3)[1:])  # without the path of the installation
        calls.append(f"{file}:{frame.f_lineno} {code.co_qualname}")
    return ", ".join(calls)
