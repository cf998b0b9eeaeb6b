"""A child process that ends with mailer, and runs as another user when mailer is root.

PostgreSQL refuses to run as root, so a mailer that root started runs it as an unprivileged user.
"""

import asyncio
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from mailer.errors import StartError

LIBRARY_PATH = "LD_LIBRARY_PATH"  # Python or PostgreSQL outside the usual folders may need it

# A Python program that replaces itself with the command. Before that it asks the kernel (prctl) to
# send it SIGINT when its parent dies. Changing the user clears such a request, so the user is
# changed first. If the parent died even before the request, getppid() returns another pid, and the
# program ends. A preexec_fn could do the same, but would run Python between fork and exec in a
# process with threads, which is unsafe (Python 3.12 warns).
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
        about 5 ms: a shell that runs as this user tests each folder. Reading the folders' modes
        would miss access control lists.
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
            env=_base_environment(),
            user=self.uid,
            group=self.gid,
            extra_groups=[self.gid],
        )
        return Path(os.fsdecode(result.stdout)) if result.stdout else None


def find_unprivileged_user(home: Path) -> SystemUser | None:
    """Return the user that PostgreSQL runs as when mailer is root; None when mailer is not root.

    It is the owner of the data in the folder `home`, so that an existing database stays readable.
    Without data it is `postgres`, or else `nobody`. Raises `StartError` when there is neither.
    """
    if os.geteuid() != 0:
        return None
    with suppress(FileNotFoundError):
        owner = (home / "data").stat()
        if owner.st_uid != 0:
            return SystemUser(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return SystemUser(entry.pw_uid, entry.pw_gid)
    message = "PostgreSQL cannot run as root, and there is no user postgres or nobody: add one"
    raise StartError(message)


def _base_environment() -> dict[str, str]:
    """Return the environment of a child: without mailer's own variables, which hold secrets."""
    inherited = {LIBRARY_PATH: os.environ[LIBRARY_PATH]} if LIBRARY_PATH in os.environ else {}
    # LC_ALL: mailer reads PostgreSQL's messages, so they must be in English
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"} | inherited


class Child:
    """A running process that stops when mailer ends, even if mailer is killed.

    The kernel sends it SIGINT when the thread that started it ends, so start it on a thread that
    lasts. `ended` is set as soon as the process has ended. Works on asyncio's loop and on uvloop.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        user: SystemUser | None,
        output: int,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start `command` as `user`, or as mailer's own user when that is None.

        Standard output and error go to the file descriptor `output`. `environment` has variables to
        add to the few that every child gets.
        """
        ids = ("", "") if user is None else (str(user.uid), str(user.gid))
        # -I and -S: the script needs no variables of Python and no installed packages
        self._process = subprocess.Popen(  # noqa: S603  # our own command, no shell
            [sys.executable, "-I", "-S", "-c", LAUNCH_SCRIPT, str(os.getpid()), *ids, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=_base_environment() | (environment or {}),
            start_new_session=True,  # Ctrl-C must not stop the database before mailer
        )
        self.ended = asyncio.Event()
        # a descriptor that becomes readable when the process ends
        self._pidfd = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        return self._process.returncode

    async def stop(self, *steps: tuple[signal.Signals, float]) -> None:
        """Stop the process in steps: send a signal, and wait at most those seconds for its end.

        The next step follows only if the process still runs.
        """
        for number, seconds in steps:
            if self.ended.is_set():
                return
            self._process.send_signal(number)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.ended.wait()

    def _reap(self) -> None:
        """Read the exit code of the ended process, so that the kernel can forget it."""
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self.ended.set()
