"""Start programs of others on loopback, for as long as a test needs them."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from tests.processes import until


@contextlib.asynccontextmanager
async def running(
    *command: str, folder: Path, environ: Mapping[str, str] | None = None, has_output: bool = False
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program in `folder`. At the end kill it, and the processes that it has started.

    `environ` are variables in addition to those of the test. With `has_output` the test reads the
    output; it must read all of it.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **(environ or {})},
        stdin=subprocess.PIPE,  # some programs end when their input ends
        stdout=subprocess.PIPE if has_output else subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        limit=1_000_000,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def free_port() -> int:
    """Return a TCP port on which nothing listens.

    It is none that the system gives to other programs before the caller uses it: Linux takes ports
    above 32767 for outgoing connections, and for servers that do not say which port they want.
    """
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


async def until_open(port: int) -> None:
    """Wait until a server listens on this port."""

    async def connect() -> bool | None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return None
        writer.close()
        return True

    await until(connect)
