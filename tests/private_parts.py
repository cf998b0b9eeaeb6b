"""Help for tests of private parts of libraries that mailer uses or overrides.

The tests fail when a new version of a library changes such a part (docs/decisions, 14).
"""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


def parameters(part: Callable[..., Any]) -> str:
    """Return the parameters of a function as text, such as `name, limit=10`, without annotations.

    A default that is neither None nor a number is written as `<sentinel>`.
    """
    return ", ".join(
        parameter.name
        + ("" if parameter.default is parameter.empty else f"={_default(parameter.default)}")
        for parameter in inspect.signature(part).parameters.values()
    )


def _default(value: object) -> str:
    return repr(value) if value is None or isinstance(value, int) else "<sentinel>"


def added(subclass: type) -> set[str]:
    """Return the names that a class defines itself, without inherited and special ones."""
    return {name for name in vars(subclass) if not name.endswith("__")}


class Wire(asyncio.Transport):
    """The transport of a connection that does not exist; it keeps the bytes that are written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""
