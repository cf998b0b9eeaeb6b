"""Run long work on the event loop in short slices, so that other tasks run in between."""

import asyncio
from collections.abc import Generator
from time import monotonic
from typing import TypeVar

Result = TypeVar("Result")

MAX_SLICE = 0.001  # seconds
"""Seconds of work after which other tasks may run."""
MAX_PAUSE_RATIO = 2.0
"""Longest pause for other tasks, as a multiple of the work's time before it."""
IDLE_ITERATION = 0.0002  # seconds
"""An iteration of the loop that takes fewer seconds than this had nothing to do."""


class TimeSlices:
    """Divides long work into slices of `MAX_SLICE` seconds.

    Between two slices the other tasks that are ready run, for at most `MAX_PAUSE_RATIO` times the
    slice. The work goes on at once when the loop is idle.
    """

    def __init__(self) -> None:
        self._slice_start = monotonic()

    async def pause(self) -> None:
        """Let other tasks run if the slice is over. Call it more often than every `MAX_SLICE`."""
        now = monotonic()
        worked = now - self._slice_start
        if worked < MAX_SLICE:
            return
        # a longer slice includes waits for something else
        until = now + MAX_PAUSE_RATIO * min(worked, 2 * MAX_SLICE)
        is_idle = False
        while not is_idle and now < until:
            before = now
            await asyncio.sleep(0)
            now = monotonic()
            is_idle = now - before < IDLE_ITERATION
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
