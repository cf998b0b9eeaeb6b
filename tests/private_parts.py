"""Functions for the tests of the private parts of libraries that mailer uses (decision 14)."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


def parameters(part: Callable[..., Any]) -> str:
    """Return the parameters of a function as text, such as `name, limit=10`, without annotations.

    For example `self, config, _loop=None`. A default that is neither None nor an integer is written
    as `<sentinel>`.
    """
    return ", ".join(
        parameter.name
        + ("" if parameter.default is parameter.empty else f"={_default(parameter.default)}")
        for parameter in inspect.signature(part).parameters.values()
    )


def _default(value: object) -> str:
    return repr(value) if value is None or isinstance(value, int) else "<sentinel>"


def names_defined_by(ours: type) -> set[str]:
    """Return the names that a class itself defines, without special ones such as `__init__`."""
    return {name for name in vars(ours) if not name.endswith("__")}


class Wire(asyncio.Transport):
    """A transport of asyncio without a network, which keeps what is written to it."""

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
