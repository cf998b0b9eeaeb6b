"""`mailer serve` that prints every block of its event loop on standard error.

A benchmark runs this instead of `mailer serve`: a line of JSON a block, as the log writes it.
"""

import os
import sys

import msgspec
import uvloop

from mailer import app
from mailer.log import configure_logging
from mailer.loop_monitor import Block, LoopMonitor
from mailer.settings import read_settings

INTERVAL, LEAST = 0.002, 0.004
"""Seconds between two looks, and of a block that is told."""


def tell(block: Block) -> None:
    """Write a block as an event of the log."""
    event = {"event": "event_loop_blocked", "level": "debug", **msgspec.structs.asdict(block)}
    sys.stderr.write(msgspec.json.encode(event).decode() + "\n")
    sys.stderr.flush()


async def main() -> None:
    """Serve as the settings say."""
    settings = read_settings(os.environ)
    configure_logging(settings.log_level, settings.log_format)
    with LoopMonitor(interval=INTERVAL, limit=LEAST, report=tell).running():
        await app.serve(settings)


if __name__ == "__main__":
    uvloop.run(main())
