"""A real Kannel on loopback: bearerbox, smsbox, and fakesmsc as the network operator."""

import asyncio
import contextlib
import re
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

from tests.processes import until
from tests.programs import find_program, skip_or_fail

FAKESMSC = Path("/usr/lib/kannel/test/fakesmsc")
USER, PASSWORD = "mailer", "sesame"
CONFIG = """
group = core
admin-port = {admin}
admin-password = {password}
smsbox-port = {smsbox}
box-allow-ip = "127.0.0.1"
dlr-storage = internal

group = smsc
smsc = fake
smsc-id = FAKE
host = 127.0.0.1
port = {smsc}
connect-allow-ip = 127.0.0.1

group = smsbox
bearerbox-host = 127.0.0.1
sendsms-port = {sendsms}

group = sendsms-user
username = {user}
password = {password}
max-messages = 20
concatenation = true

group = sms-service
keyword = default
max-messages = 0
text = "ignored"
"""
RECEIVED = re.compile(
    rb"Got message \d+: <(?P<sender>\S+) (?P<phone>\S+)"
    rb"(?: udh (?P<udh>\S+))? (?P<type>text|data|ucs-2) (?P<data>.*)>$"
)
"""A line of fakesmsc's log. Data is percent-encoded, apart from that of the type `text`."""


class Part:
    """A part of a text, as the network operator received it."""

    def __init__(self, line: re.Match[bytes]) -> None:
        self.sender, self.phone = line["sender"].decode(), line["phone"].decode()
        udh = unquote_to_bytes(line["udh"] or b"")
        self.reference, self.total, self.number = udh[3:6] if udh else (0, 1, 1)
        """From the user data header (3GPP TS 23.040, section 9.2.3.24.1)."""
        self.data = line["data"]
        if line["type"] != b"text":
            self.data = unquote_to_bytes(self.data.replace(b"+", b" "))
        # fakesmsc does not say in which alphabet a part of a long text is. In UTF-16, Latin letters
        # and blanks have a byte 0, and Cyrillic letters a byte 4; no text in UTF-8 has them.
        self.is_ucs2 = line["type"] == b"ucs-2" or bool({0, 4} & {*self.data})


class Kannel:
    """A running Kannel, and what its network operator received."""

    def __init__(self, url: str) -> None:
        self.url = url
        """Address of smsbox."""
        self.parts: list[Part] = []

    def config(self, name: str = "kannel") -> str:
        """Return the table `[[gateway]]` for this Kannel."""
        return (
            f'[[gateway]]\nname = "{name}"\nkind = "kannel"\nurl = "{self.url}"\n'
            f'username = "{USER}"\npassword = "{PASSWORD}"\nsender = "ACME"\n'
        )

    async def until_complete(self, count: int) -> list[tuple[str, str]]:
        """Wait until `count` messages were received, and return their phones and texts."""

        async def texts() -> list[tuple[str, str]] | None:
            received = self.texts()
            return received if len(received) >= count else None

        return await until(texts)

    def texts(self) -> list[tuple[str, str]]:
        """Return phone and text of each message of which all parts were received."""
        messages: dict[tuple[str, int, int], list[Part]] = {}
        for position, part in enumerate(self.parts):
            key = (part.phone, part.reference, position if part.total == 1 else -1)
            messages.setdefault(key, []).append(part)
        return [
            (parts[0].phone, _join(parts))
            for parts in messages.values()
            if len(parts) == parts[0].total
        ]


def _join(parts: list[Part]) -> str:
    data = b"".join(part.data for part in sorted(parts, key=lambda part: part.number))
    return data.decode("utf-16-be" if parts[0].is_ucs2 else "utf-8")


@contextlib.asynccontextmanager
async def kannel(folder: Path) -> AsyncIterator[Kannel]:
    """Run Kannel with its files in `folder`. Skip the test if it is not installed."""
    bearerbox, smsbox = find_program("bearerbox"), find_program("smsbox")
    if not FAKESMSC.exists():
        skip_or_fail("fakesmsc")
    ports = {name: _free_port() for name in ("admin", "smsbox", "smsc", "sendsms")}
    config = folder / "kannel.conf"
    config.write_text(CONFIG.format(**ports, user=USER, password=PASSWORD))
    server = Kannel(f"http://127.0.0.1:{ports['sendsms']}")
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(_running(bearerbox, str(config), folder=folder))
        await _until_open(ports["smsbox"])
        await _until_open(ports["smsc"])
        operator = await stack.enter_async_context(
            _running(
                *(str(FAKESMSC), "-H", "127.0.0.1", "-r", str(ports["smsc"]), "-m", "0"),
                folder=folder,
            )
        )
        reader = asyncio.create_task(_read(operator, server.parts))
        stack.callback(reader.cancel)
        await stack.enter_async_context(_running(smsbox, str(config), folder=folder))
        await _until_open(ports["sendsms"])
        yield server


@contextlib.asynccontextmanager
async def _running(*command: str, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        stdin=subprocess.PIPE,  # fakesmsc ends when its input ends
        stdout=subprocess.PIPE if command[0] == str(FAKESMSC) else subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        limit=1_000_000,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _read(operator: asyncio.subprocess.Process, parts: list[Part]) -> None:
    """Add what fakesmsc logs to `parts`."""
    assert operator.stdout is not None
    async for line in operator.stdout:
        parts.extend(Part(received) for received in RECEIVED.finditer(line.rstrip()))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


async def _until_open(port: int) -> None:
    """Wait until a server listens on this port."""

    async def connect() -> bool | None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return None
        writer.close()
        return True

    await until(connect)
