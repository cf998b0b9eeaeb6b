"""How long tests wait for events."""

import asyncio
from typing import Any

EVENT_TIMEOUT = 90.0
"""Seconds; long enough for a slow and busy machine, so reached only if the event never comes.
Events usually come within a second."""
LET_RUN_TIME = 0.3
"""Seconds in which a task surely reaches the lock at which it must wait."""


async def let_run(task: asyncio.Task[Any]) -> None:
    """Give a task time to end, or to wait for a lock that the test holds."""
    await asyncio.wait({task}, timeout=LET_RUN_TIME)
