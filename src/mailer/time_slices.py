"""Run long work on the event loop in short slices, so that other tasks run in between.

Such work is, for example, to parse a large file. It calls `TimeSlices.pause` often, or is a
generator that `run_in_slices` runs.
"""

import asyncio
from collections.abc import Generator
from time import monotonic
from typing import TypeVar

Result = TypeVar("Result")

MAX_SLICE = 0.001
"""Seconds of work after which other tasks may run."""
MAX_PAUSE_RATIO = 2.0
"""Longest pause for other tasks, as a multiple of the duration of the slice before it. So the work
gets at least a third of the time."""
IDLE_ITERATION = 0.0002
"""Seconds. An iteration of the event loop that took less had no other task to run."""


class TimeSlices:
    """Divides the long work of one task into slices of `MAX_SLICE` seconds.

    Between two slices the task pauses until the other tasks have nothing to do, but at most for
    `MAX_PAUSE_RATIO` times the slice.
    """

    def __init__(self) -> None:
        self._slice_start = monotonic()

    async def pause(self) -> None:
        """Let other tasks run if the slice is over.

        The work calls this at intervals shorter than `MAX_SLICE`.
        """
        now = monotonic()
        slice_duration = now - self._slice_start
        if slice_duration < MAX_SLICE:
            return
        # a slice of more than twice the maximum was not all work: the task waited for something
        work_duration = min(slice_duration, 2 * MAX_SLICE)
        pause_end = now + MAX_PAUSE_RATIO * work_duration
        is_loop_idle = False
        while not is_loop_idle and now < pause_end:
            iteration_start = now
            await asyncio.sleep(0)  # one iteration of the loop: every task that is ready runs
            now = monotonic()
            is_loop_idle = now - iteration_start < IDLE_ITERATION
        self._slice_start = now


async def run_in_slices(steps: Generator[None, None, Result]) -> Result:
    """Run a generator to its end and return its result. Other tasks run between its steps."""
    slices = TimeSlices()
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        await slices.pause()
