"""Programs of mailer that run as processes of their own, without secrets in their environment."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import IO

from mailer.errors import UnavailableError

PIPE_READ_SIZE = 64 * 1024
"""Bytes read from a program at once."""


@asynccontextmanager
async def run_program(
    module: str, *arguments: str, stdin: int | IO[bytes]
) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """Run a module of mailer as a program, whose output is a pipe; kill it if it still runs then.

    Raises `UnavailableError` if it cannot run.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", module, *arguments),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},  # no secrets
        )
    except OSError as error:  # too many processes
        raise UnavailableError from error
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def read_output(process: asyncio.subprocess.Process) -> AsyncGenerator[bytes, None]:
    """Yield what a program writes, until it closes its output."""
    if process.stdout is None:  # pragma: no cover  # it is a pipe
        raise RuntimeError
    while part := await process.stdout.read(PIPE_READ_SIZE):
        yield part
