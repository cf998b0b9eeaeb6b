"""How much processor time the machine adds to a piece of work, measured on work that never changes.

A virtual machine may be stopped in the middle of a step, and neighbours slow its cores down; both
count as processor time of whatever runs.
"""

import asyncio
import select
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

PATIENCE = 30.0
"""Seconds for the process to end."""
LOOPS = 60_000
"""Of the work: about 5 ms."""
PAUSE = 0.05
"""Seconds between two pieces of work, so that it takes little of the machine."""


class Noise:
    """The result, once the measuring has ended."""

    def __init__(self) -> None:
        self.most = 0.0
        """Seconds of processor time by which one piece of work exceeded the median."""


@asynccontextmanager
async def measured_noise() -> AsyncIterator[Noise]:
    """Measure in a process of its own while the block lasts."""
    noise = Noise()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", __file__),  # `operator` is also a module of Python
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield noise
        said, _ = await asyncio.wait_for(process.communicate(b""), PATIENCE)
        noise.most = float(said)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def work() -> int:
    """Do what takes the same time whenever it is done."""
    return sum(number * number for number in range(LOOPS))


def measure() -> float:
    """Work until standard input is closed; return `Noise.most`."""
    took = []
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        began = time.thread_time()
        work()
        took.append(time.thread_time() - began)
    return max(took, default=0.0) - median(took or [0.0])


if __name__ == "__main__":
    print(measure())
