"""Work on temporary files, in a thread so that the event loop goes on."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from mailer.errors import UnavailableError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class NoSpaceError(UnavailableError):
    """There is no disk space for the file; try again later."""


async def on_disk(
    work: Callable[Parameters, Result], *args: Parameters.args, **options: Parameters.kwargs
) -> Result:
    """Call a function that reads or writes a temporary file; raises `NoSpaceError`."""
    try:
        return await asyncio.to_thread(work, *args, **options)
    except OSError as error:
        raise NoSpaceError from error
