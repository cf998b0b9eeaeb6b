"""Help for the tests of the private parts of libraries (decision 14)."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


def parameters(part: Callable[..., Any]) -> str:
    """Return the parameters of a function as in its signature, without annotations.

    A default that is neither None nor a number is written as `<sentinel>`.
    """
    return ", ".join(
        parameter.name
        + ("" if parameter.default is parameter.empty else f"={_default(parameter.default)}")
        for parameter in inspect.signature(part).parameters.values()
    )


def _default(value: object) -> str:
    return repr(value) if value is None or isinstance(value, int) else "<sentinel>"


def added(ours: type) -> set[str]:
    """Return the names that a class defines itself, without special ones."""
    return {name for name in vars(ours) if not name.endswith("__")}


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

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
