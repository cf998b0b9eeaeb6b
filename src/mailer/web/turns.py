"""Turns: no more than so many at once do what takes long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mailer.errors import UnavailableError


class BusyError(UnavailableError):
    """Too many imports or downloads are under way; try again in half a minute."""

    retry_after = 30


class Turns:
    """At most `most` at once have a turn; each waits for one for at most `patience` seconds."""

    def __init__(
        self, most: int, *, patience: float, busy: type[UnavailableError] = BusyError
    ) -> None:
        self._free = asyncio.Semaphore(most)
        self._patience = patience
        self._busy = busy

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn and have it; raises `busy`."""
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError:
            raise self._busy from None
        try:
            yield
        finally:
            self._free.release()
