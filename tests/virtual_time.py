"""An event loop whose time is virtual: it jumps to the next timer instead of waiting for it.

For tests of waits and deadlines that touch no socket: they take no time, and no load on the
machine changes what they find.
"""

import asyncio
import functools
import selectors
from collections.abc import Awaitable, Callable
from typing import ParamSpec

Given = ParamSpec("Given")


class _JumpingSelector(selectors.DefaultSelector):
    """Finds what is ready; where nothing is, the time passes at once."""

    passed = 0.0
    """Seconds of virtual time so far."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(None if timeout is None else 0)
        if timeout is not None and not found:
            self.passed += max(0.0, timeout)
        return found


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, which begins at 0."""

    def __init__(self) -> None:
        self._virtual = _JumpingSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.passed


def in_virtual_time(test: Callable[Given, Awaitable[None]]) -> Callable[Given, None]:
    """Run an async test on a loop of its own, in virtual time."""

    @functools.wraps(test)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> None:
        async def body() -> None:
            await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(body())

    return run
