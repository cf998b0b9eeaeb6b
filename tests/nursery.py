"""Where mailer's processes for tests come from: forked from one that has imported all of it.

A start costs what mailer itself does in it, and not the second that Python takes for imports. Each
process is one of its own, runs what `mailer serve` runs, and may be killed like any other. Tests
of the command line and of a wheel start the program itself.

Run as a script it is the nursery: it takes an order with two files, for each forks a keeper, which
forks the process, says its number and then its status. Without its tests it ends.
"""

import asyncio
import atexit
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from mailer import app  # noqa: F401  # which `serve` imports when it runs
from mailer.__main__ import main

LARGEST_ORDER = 100_000
"""Bytes: the environment of a process."""


class Nursed:
    """A process of the nursery; it has what tests use of asyncio's own."""

    def __init__(self, pid: int, stderr: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stderr = stderr
        self.returncode: int | None = None

    def follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Wait for its status beside everything else."""
        self._ending = asyncio.create_task(self._end(reader, writer))

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended this very moment
                os.kill(self.pid, number)

    async def wait(self) -> int:
        return await asyncio.shield(self._ending)

    async def _end(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        self.returncode = int(await reader.readline())
        writer.close()
        return self.returncode


async def start(environ: Mapping[str, str], path: Path) -> Nursed:
    """Start `mailer serve` under just this environment, on the code at `path`."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    order = json.dumps(dict(environ)).encode()
    socket.send_fds(_nursery(path), [order], [theirs.fileno(), writing])
    theirs.close()
    os.close(writing)
    reader, writer = await asyncio.open_connection(sock=ours)
    stderr = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stderr), os.fdopen(reading, "rb")
    )
    process = Nursed(int(await reader.readline()), stderr)
    process.follow(reader, writer)
    return process


@cache
def _nursery(path: Path) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(  # noqa: S603  # this very file
        [sys.executable, "-P", __file__, str(theirs.fileno())],
        env=os.environ | {"PYTHONPATH": str(path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


# ---- in the nursery -------------------------------------------------------------------------


def nurse(channel: socket.socket) -> None:
    """Take orders until there is nobody to give any; returns in each process that is ordered."""
    gc.freeze()  # else each process would copy what it only looks through
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        order, files, _, _ = socket.recv_fds(channel, LARGEST_ORDER, 2)
        if not order:
            return
        if os.fork() == 0:
            channel.close()
            _keep(*files)
            os.environ.clear()
            os.environ.update(json.loads(order))
            sys.argv = ["mailer", "serve"]
            main(["serve"])
        for file in files:
            os.close(file)


def _keep(told: int, stderr: int) -> None:
    """Fork the process, in which alone this returns, and tell what becomes of it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(told)
        return
    os.close(stderr)
    os.write(told, b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


if __name__ == "__main__":
    nurse(socket.socket(fileno=int(sys.argv[1])))
