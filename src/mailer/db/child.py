"""A child process that cannot outlive mailer, run as another user when mailer is root."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

LIBRARIES = "LD_LIBRARY_PATH"  # a Python or PostgreSQL outside the usual folders may need it

# Becomes the command. Giving up root clears the wish to be signalled, so that comes second; and
# a parent that died before it was heard would never be noticed. A preexec_fn would do the same,
# but between fork and exec of a process with threads, which Python 3.12 warns of.
SHIM = """
import ctypes, os, signal, sys
parent, uid, gid, *command = sys.argv[1:]
if uid:
    os.setgroups([int(gid)])
    os.setgid(int(gid))
    os.setuid(int(uid))
signal.signal(signal.SIGINT, signal.SIG_DFL)
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
if os.getppid() == int(parent):
    os.execv(command[0], command)
"""


class Account(msgspec.Struct, frozen=True):
    """An unprivileged user to run as."""

    uid: int
    gid: int

    def closed_folder(self, target: Path) -> Path | None:
        """Return the outermost folder on the way to `target` that keeps this user out.

        Blocks for some 5 ms: a process of that user tries, so that access lists count too.
        """
        answer = subprocess.run(  # noqa: S603  # names are arguments, not part of the script
            [
                "/bin/sh",
                "-c",
                'for way; do [ -x "$way" ] || { printf %s "$way"; break; }; done',
                "sh",
                *reversed(target.parents),
                target,
            ],
            stdout=subprocess.PIPE,
            check=False,
            cwd="/",
            env=_environment(),
            user=self.uid,
            group=self.gid,
            extra_groups=[self.gid],
        )
        return Path(os.fsdecode(answer.stdout)) if answer.stdout else None


def _environment() -> dict[str, str]:
    """Return what a child needs and nothing of mailer's own, which holds secrets."""
    inherited = {LIBRARIES: os.environ[LIBRARIES]} if LIBRARIES in os.environ else {}
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"} | inherited  # C: messages are read


class Child:
    """A process that gets SIGINT when the thread that started it ends, however it ends.

    `ended` is set as soon as it is gone. Works alike on every event loop.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        account: Account | None,
        output: int,
        environment: dict[str, str] | None = None,
    ) -> None:
        user = ("", "") if account is None else (str(account.uid), str(account.gid))
        self._process = subprocess.Popen(  # noqa: S603  # our own command, no shell
            [sys.executable, "-I", "-S", "-c", SHIM, str(os.getpid()), *user, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=_environment() | (environment or {}),
            start_new_session=True,  # Ctrl-C is for mailer, which still needs its database
        )
        self.ended = asyncio.Event()
        self._pidfd = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.returncode

    async def end(self, *stops: tuple[signal.Signals, float]) -> None:
        """Send each signal in turn, until the process has ended within its seconds."""
        for number, patience in stops:
            if self.ended.is_set():
                return
            self._process.send_signal(number)
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self.ended.wait()

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self.ended.set()
