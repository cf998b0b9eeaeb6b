"""Long work on the event loop, done in slices between which everything else has its turn."""

import asyncio
from collections.abc import Generator
from time import monotonic
from typing import TypeVar

Result = TypeVar("Result")

SLICE = 0.001  # seconds
"""After so much work others have a turn."""
OTHERS = 2.0
"""Times as long as the work took that others have in turn, if they have so much to do."""
IDLE = 0.0002  # seconds
"""A round of the loop that takes less found nothing to do."""


class TimeSlices:
    """Divides long work into slices.

    Between two of them everything else that is ready runs: so long as there is any, but no longer
    than `OTHERS` times a slice. An idle loop is not waited for.
    """

    def __init__(self) -> None:
        self._began = monotonic()

    async def pause(self) -> None:
        """Let others run, if it is time; to be called more often than each `SLICE`."""
        now = monotonic()
        worked = now - self._began
        if worked < SLICE:
            return
        until = now + OTHERS * min(worked, 2 * SLICE)  # longer ones were waits for something else
        is_idle = False
        while not is_idle and now < until:
            before = now
            await asyncio.sleep(0)
            now = monotonic()
            is_idle = now - before < IDLE
        self._began = now


async def run_in_slices(steps: Generator[None, None, Result]) -> Result:
    """Return what a generator returns; others have their turn between its steps."""
    slices = TimeSlices()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
        await slices.pause()
