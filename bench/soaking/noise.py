"""Measure the noise of the machine: the processor time that it adds to constant work.

A virtual machine may be stopped for a moment, and other virtual machines may slow its cores down.
Both count as processor time of the program that runs. The soak adds the noise to its limit for
steps of mailer's event loop. As a script, this does the constant work.
"""

import asyncio
import select
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

EXIT_TIMEOUT = 30.0
"""Seconds for the measuring process to end."""
LOOPS = 60_000
"""Iterations of the work, which takes about 5 ms."""
WORK_INTERVAL = 0.05
"""Seconds between two pieces of work, so that the measurement itself needs little time."""


class Noise:
    """The result of a measurement."""

    def __init__(self) -> None:
        self.max_excess = 0.0
        """Processor seconds by which the slowest piece of work exceeded the median. 0 until the
        measurement ends."""


@asynccontextmanager
async def measured_noise() -> AsyncIterator[Noise]:
    """Measure the noise in another process while the block runs."""
    noise = Noise()
    process = await asyncio.create_subprocess_exec(
        # -P: do not import from this folder, where `operator.py` hides Python's `operator`
        *(sys.executable, "-P", __file__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield noise
        # communicate() closes the standard input of the process, which ends the measurement
        output, _ = await asyncio.wait_for(process.communicate(b""), EXIT_TIMEOUT)
        noise.max_excess = float(output)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def work() -> int:
    """Do work that always takes the same processor time."""
    return sum(number * number for number in range(LOOPS))


def measure() -> float:
    """Work until standard input is closed; return `Noise.max_excess`."""
    seconds = []
    while not select.select([sys.stdin], [], [], WORK_INTERVAL)[0]:
        began = time.thread_time()
        work()
        seconds.append(time.thread_time() - began)
    return max(seconds, default=0.0) - median(seconds or [0.0])


if __name__ == "__main__":
    print(measure())
