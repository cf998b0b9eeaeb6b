"""Where mailer's processes for tests come from: forked from one that has imported all of it.

A start costs what mailer itself does in it, and not the second that Python takes for imports and
templates. Each process is one of its own, runs what a command of mailer runs, and may be killed
like any other. A test of a wheel starts the program itself.

Run as a script it is the nursery: it takes an order with four files, for each forks a keeper, which
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
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from mailer import app  # noqa: F401  # which `serve` imports when it runs
from mailer.__main__ import main
from mailer.admin.render import load_templates

LARGEST_ORDER = 100_000
"""Bytes: the environment of a process."""

Loader = tuple[tuple[str, str], ...]
"""Variables that only the start of a program reads, such as `LD_PRELOAD`."""


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


async def start(environ: Mapping[str, str], path: Path, loader: Loader = ()) -> Nursed:
    """Start `mailer serve` under just this environment, on the code at `path`.

    `loader` is what has to be set before Python starts: a nursery of its own is started with it.
    """
    reading, writing = os.pipe()
    with open(os.devnull, "r+b") as nothing, os.fdopen(writing, "wb") as stderr:  # noqa: PTH123  # at once
        files = [nothing.fileno(), nothing.fileno(), stderr.fileno()]
        ours = _order(["serve"], environ, path, files, loader)
    reader, writer = await asyncio.open_connection(sock=ours)
    stderr_reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stderr_reader), os.fdopen(reading, "rb")
    )
    process = Nursed(int(await reader.readline()), stderr_reader)
    process.follow(reader, writer)
    return process


def run(
    arguments: Sequence[str], environ: Mapping[str, str], path: Path, given: str, within: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `given` is its standard input.

    Raises `TimeoutError`, and ends the command, after `within` seconds.
    """
    with ExitStack() as stack:
        stdin, stdout, stderr = (
            stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(3)
        )
        stdin.write(given)
        stdin.seek(0)
        files = [stdin.fileno(), stdout.fileno(), stderr.fileno()]
        ours = stack.enter_context(_order(arguments, environ, path, files))
        ours.settimeout(within)
        said = stack.enter_context(ours.makefile())
        pid = int(said.readline())
        try:
            status = int(said.readline())
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(arguments, status, stdout.read(), stderr.read())


def _order(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    path: Path,
    files: Sequence[int],
    loader: Loader = (),
) -> socket.socket:
    """Order a process with these standard files; return what says its number, then its status."""
    ours, theirs = socket.socketpair()
    with theirs:
        order = json.dumps({"arguments": list(arguments), "environ": dict(environ)}).encode()
        socket.send_fds(_nursery(path, loader), [order], [theirs.fileno(), *files])
    return ours


@cache
def _nursery(path: Path, loader: Loader) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(  # noqa: S603  # this very file
        [sys.executable, "-P", __file__, str(theirs.fileno())],
        env=os.environ | {"PYTHONPATH": str(path)} | dict(loader),
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
    load_templates()
    gc.freeze()  # else each process would copy what it only looks through
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        order, files, _, _ = socket.recv_fds(channel, LARGEST_ORDER, 4)
        if not order:
            return
        if os.fork() == 0:
            channel.close()
            _keep(*files)
            wanted = json.loads(order)
            os.environ.clear()
            os.environ.update(wanted["environ"])
            sys.argv = ["mailer", *wanted["arguments"]]
            main(wanted["arguments"])  # which exits
        for file in files:
            os.close(file)


def _keep(told: int, *standard: int) -> None:
    """Fork the process, in which alone this returns, and tell what becomes of it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        for number, file in enumerate(standard):
            os.dup2(file, number)
            os.close(file)
        os.close(told)
        return
    for file in standard:
        os.close(file)
    os.write(told, b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


if __name__ == "__main__":
    nurse(socket.socket(fileno=int(sys.argv[1])))
