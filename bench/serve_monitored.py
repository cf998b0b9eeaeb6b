"""`mailer serve` that also reports every block of its event loop on standard error.

Benchmarks run this instead of `mailer serve`. A block is a time for which one step of the event
loop delays all others. It is reported as the event `event_loop_blocked`, one line of JSON like the
other lines of the log. Every line also has the machine's monotonic time.

The only argument is the shortest block to report, in seconds. The shorter it is, the more often the
monitor interrupts the loop.

On the signal SIGRTMIN it writes the stack of every task, as the event `tasks` at level error.
"""

import asyncio
import io
import os
import signal
import sys
import time

import msgspec
import structlog
import uvloop
from structlog.typing import EventDict, WrappedLogger

from mailer import worker
from mailer.log import configure_logging
from mailer.loop_monitor import Block, LoopMonitor
from mailer.settings import read_settings

DEFAULT_MIN_BLOCK = 0.004
"""Seconds of the shortest block that is reported, without the argument."""


def write_block(block: Block) -> None:
    """Write a block as an event of the log."""
    event = {"event": "event_loop_blocked", "level": "debug", **msgspec.structs.asdict(block)}
    sys.stderr.write(msgspec.json.encode(event).decode() + "\n")
    sys.stderr.flush()


def add_monotonic(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add the monotonic time in seconds to a log event; it does not change with the wall clock."""
    event["monotonic"] = time.monotonic()
    return event


def write_tasks() -> None:
    """Write the stacks of all tasks as an event of the log: they show why mailer does not stop."""
    stacks = io.StringIO()
    for task in asyncio.all_tasks():
        task.print_stack(limit=4, file=stacks)
    event = {"event": "tasks", "level": "error", "stacks": stacks.getvalue()}
    sys.stderr.write(msgspec.json.encode(event).decode() + "\n")
    sys.stderr.flush()


async def main(min_block: float) -> None:
    """Serve with the settings of the environment; report blocks of `min_block` seconds or more."""
    settings = read_settings(os.environ)
    configure_logging(settings.log_level, settings.log_format)
    structlog.configure(processors=[add_monotonic, *structlog.get_config()["processors"]])
    asyncio.get_running_loop().add_signal_handler(signal.SIGRTMIN, write_tasks)
    with LoopMonitor(interval=min_block / 2, limit=min_block, report=write_block).running():
        await worker.serve(settings)


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_MIN_BLOCK))
