"""A child process that ends with mailer, and runs as another user when mailer is root."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

LIBRARY_PATH = "LD_LIBRARY_PATH"  # Python or PostgreSQL outside the usual folders may need it

# A Python program that replaces itself with the command. It asks the kernel for SIGINT at the
# parent's death (prctl). Changing the user clears that request, so it comes after it. The check of
# getppid() catches a parent that died before the request. A preexec_fn could do the same, but would
# run Python between fork and exec in a process with threads, which is unsafe (Python 3.12 warns).
LAUNCH_SCRIPT = """
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


class SystemUser(msgspec.Struct, frozen=True):
    """An unprivileged user of the operating system, as which a child process runs."""

    uid: int
    gid: int

    def find_inaccessible_folder(self, target: Path) -> Path | None:
        """Return the outermost folder in the path of `target` that this user cannot enter.

        `target` itself counts too. Returns None when the user can enter all of them. Blocks for
        about 5 ms: a process of that user tests the folders, so that access control lists count.
        """
        result = subprocess.run(  # noqa: S603  # paths are arguments, not part of the script
            [
                "/bin/sh",
                "-c",
                'for folder; do [ -x "$folder" ] || { printf %s "$folder"; break; }; done',
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
        return Path(os.fsdecode(result.stdout)) if result.stdout else None


def _environment() -> dict[str, str]:
    """Return the environment of a child: without mailer's own variables, which hold secrets."""
    inherited = {LIBRARY_PATH: os.environ[LIBRARY_PATH]} if LIBRARY_PATH in os.environ else {}
    # LC_ALL: mailer reads PostgreSQL's messages, so they must be in English
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"} | inherited


class Child:
    """A process that the kernel sends SIGINT when the thread that started it ends.

    This also works when mailer is killed. `ended` is set as soon as the process has ended. Works on
    every event loop.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        user: SystemUser | None,
        output: int,
        environment: dict[str, str] | None = None,
    ) -> None:
        ids = ("", "") if user is None else (str(user.uid), str(user.gid))
        self._process = subprocess.Popen(  # noqa: S603  # our own command, no shell
            [sys.executable, "-I", "-S", "-c", LAUNCH_SCRIPT, str(os.getpid()), *ids, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=_environment() | (environment or {}),
            start_new_session=True,  # Ctrl-C must not stop the database before mailer
        )
        self.ended = asyncio.Event()
        self._pidfd = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        return self._process.returncode

    async def stop(self, *stops: tuple[signal.Signals, float]) -> None:
        """Stop the process: send each signal, and wait so many seconds, until it has ended."""
        for number, seconds in stops:
            if self.ended.is_set():
                return
            self._process.send_signal(number)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.ended.wait()

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self.ended.set()
