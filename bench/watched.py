"""`mailer serve` that prints every block of its event loop on standard error.

A benchmark runs this instead of `mailer serve`: a line of JSON a block, as the log writes it. Every
line of the log has the time of the clock that never steps, too. The argument is the least block in
seconds; looks for short blocks slow the loop down.
"""

import os
import sys
import time

import msgspec
import structlog
import uvloop
from structlog.typing import EventDict, WrappedLogger

from mailer import app
from mailer.log import configure_logging
from mailer.loop_monitor import Block, LoopMonitor
from mailer.settings import read_settings

LEAST = 0.004
"""Seconds of a block that is told, unless another least is given."""


def tell(block: Block) -> None:
    """Write a block as an event of the log."""
    event = {"event": "event_loop_blocked", "level": "debug", **msgspec.structs.asdict(block)}
    sys.stderr.write(msgspec.json.encode(event).decode() + "\n")
    sys.stderr.flush()


def add_monotonic(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add the seconds of the machine's monotonic clock: somebody may set the other one."""
    event["monotonic"] = time.monotonic()
    return event


async def main(least: float) -> None:
    """Serve as the settings say."""
    settings = read_settings(os.environ)
    configure_logging(settings.log_level, settings.log_format)
    structlog.configure(processors=[add_monotonic, *structlog.get_config()["processors"]])
    with LoopMonitor(interval=least / 2, limit=least, report=tell).running():
        await app.serve(settings)


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else LEAST))
