"""Turns: no more than so many at once do what takes long."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

from mailer.errors import UnavailableError


class BusyError(UnavailableError):
    """Too many imports or downloads are under way; try again in half a minute."""

    retry_after = 30


class Turns:
    """At most `most` at once have a turn; each waits for one for at most `patience` seconds.

    Of one owner at most `each` have one, so that nobody takes all of them; None: as many as all.
    """

    def __init__(
        self,
        most: int,
        *,
        patience: float,
        each: int | None = None,
        busy: type[UnavailableError] = BusyError,
    ) -> None:
        self._free = asyncio.Semaphore(most)
        self._each = most if each is None else each
        self._patience = patience
        self._busy = busy
        self._own: WeakValueDictionary[Hashable, asyncio.Semaphore] = WeakValueDictionary()
        """Kept by who has a turn or waits for one."""

    @asynccontextmanager
    async def turn(self, owner: Hashable | None = None) -> AsyncIterator[None]:
        """Wait for a turn and have it; raises `busy`. Nobody is counted whose owner is None.

        Who waits for a turn of his own does not stand in the line of all.
        """
        needed = [self._free]
        if owner is not None:
            needed.insert(0, self._own.setdefault(owner, asyncio.Semaphore(self._each)))
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self._patience):
                    for semaphore in needed:
                        await held.enter_async_context(semaphore)
            except TimeoutError:
                raise self._busy from None
            yield
