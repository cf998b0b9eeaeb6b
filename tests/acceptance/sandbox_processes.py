"""`mailer sandbox` as a process of the tests, and its log."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from tests.event_timeout import EVENT_TIMEOUT


class SandboxProcess:
    """A running `mailer sandbox`, and its log, which is complete once the process has stopped."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log

    def all_receipts(self) -> list[dict[str, Any]]:
        """Return the rows of all receipts, also of those that mailer did not take."""
        return self._rows("receipt")

    def receipts(self) -> list[dict[str, Any]]:
        """Return the rows of the receipts that mailer took."""
        return [row for row in self._rows("receipt") if row["taken"]]

    def replies(self) -> list[dict[str, Any]]:
        """Return the rows of the replies that mailer took."""
        return [row for row in self._rows("reply") if row["taken"]]

    def _rows(self, kind: str) -> list[dict[str, Any]]:
        rows: Iterable[dict[str, Any]] = map(
            msgspec.json.decode, self._log.read_bytes().splitlines()
        )
        return [row for row in rows if row["kind"] == kind]


@asynccontextmanager
async def sandbox(folder: Path, *options: str) -> AsyncIterator[SandboxProcess]:
    """Run `mailer sandbox` with options; its log is in `folder`."""
    log = folder / "sandbox.jsonl"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mailer", "sandbox", "--port", "0", "--log", str(log), *options),
        env={name: value for name, value in os.environ.items() if "MAILER" not in name},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    draining = asyncio.create_task(process.stdout.read())
    try:
        yield SandboxProcess(url, log)
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), EVENT_TIMEOUT)
        await draining
