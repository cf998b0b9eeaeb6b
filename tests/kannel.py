"""A real Kannel on loopback: bearerbox, smsbox, and fakesmsc as the network operator."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import unquote_to_bytes

from tests.daemons import free_port, running, until_open
from tests.message_parts import Part, decode_ucs2
from tests.programs import find_program, skip_or_fail

FAKESMSC = Path("/usr/lib/kannel/test/fakesmsc")
USER, PASSWORD, SECRET = "mailer", "sesame", "kannel-callback-secret"
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
http-request-retry = 10
http-queue-delay = 1

group = sendsms-user
username = {user}
password = {password}
max-messages = 20
concatenation = true

group = sms-service
keyword = default
max-messages = 0
{service}
"""
INBOUND = "secret={secret}&id=%I&from=%p&to=%P&charset=%C&text=%b"
"""Query with which Kannel calls mailer for a message from a phone."""
RECEIVED = re.compile(
    rb"Got message \d+: <(?P<sender>\S+) (?P<phone>\S+)"
    rb"(?: udh (?P<udh>\S+))? (?P<type>text|data|ucs-2) (?P<data>.*)>$"
)
"""A line of fakesmsc's log. Data is percent-encoded, apart from that of the type `text`."""


def read_part(line: re.Match[bytes]) -> Part:
    """Return the part of a text that a line of fakesmsc's log describes."""
    udh = unquote_to_bytes(line["udh"] or b"")
    # From the user data header (3GPP TS 23.040, section 9.2.3.24.1)
    reference, total, number = udh[3:6] if udh else (0, 1, 1)
    data = line["data"]
    if line["type"] != b"text":
        data = unquote_to_bytes(data.replace(b"+", b" "))
    # fakesmsc does not say in which alphabet a part of a long text is. In UTF-16, Latin letters
    # and blanks have a byte 0, and Cyrillic letters a byte 4; no text in UTF-8 has them.
    is_ucs2 = line["type"] == b"ucs-2" or bool({0, 4} & {*data})
    decode = decode_ucs2 if is_ucs2 else bytes.decode
    return Part(line["phone"].decode(), reference, total, number, data, decode)


class Kannel:
    """A running Kannel, and its network operator: fakesmsc.

    `folder` has Kannel's files. `ports` are those of its parts.
    """

    def __init__(self, folder: Path, ports: Mapping[str, int]) -> None:
        self.url = f"http://127.0.0.1:{ports['sendsms']}"
        """Address of smsbox."""
        self.parts: list[Part] = []
        """What the operator received."""
        self._folder = folder
        self._port = ports["smsc"]
        self._operator = contextlib.AsyncExitStack()

    async def start_operator(self, *messages: str) -> None:
        """Start the operator, which sends these messages in its own format."""
        command = (str(FAKESMSC), "-H", "127.0.0.1", "-r", str(self._port), "-i", "0.1")
        operator = await self._operator.enter_async_context(
            running(
                *(*command, "-m", str(len(messages)), *messages),
                folder=self._folder,
                has_output=True,
            )
        )
        reader = asyncio.create_task(_read(operator, self.parts))
        self._operator.callback(reader.cancel)

    async def stop_operator(self) -> None:
        """Stop the operator; what it has received is in `parts`."""
        await self._operator.aclose()

    async def send_from_phone(self, phone: str, text: str) -> None:
        """Send a message from a phone to the sender of mailer's messages.

        The operator only sends at its start, so it is started again: it must be idle.
        """
        await self.stop_operator()
        if text.isascii():
            data = f"text {text}"
        else:
            data = "ucs2 " + "".join(f"%{octet:02x}" for octet in text.encode("utf-16-be"))
        await self.start_operator(f"+{phone} ACME {data}")

    def config(self, name: str = "kannel") -> str:
        """Return the table `[[gateway]]` for this Kannel."""
        return (
            f'[[gateway]]\nname = "{name}"\nkind = "kannel"\nurl = "{self.url}"\n'
            f'username = "{USER}"\npassword = "{PASSWORD}"\nsender = "ACME"\n'
            f'callback_secret = "{SECRET}"\n'
        )


@contextlib.asynccontextmanager
async def kannel(folder: Path, inbound_url: str | None = None) -> AsyncIterator[Kannel]:
    """Run Kannel with its files in `folder`. Skip the test if it is not installed.

    For each message from a phone it calls `inbound_url` of mailer.
    """
    bearerbox, smsbox = find_program("bearerbox"), find_program("smsbox")
    if not FAKESMSC.exists():
        skip_or_fail("fakesmsc")
    ports = {name: free_port() for name in ("admin", "smsbox", "smsc", "sendsms")}
    query = INBOUND.format(secret=SECRET)
    service = 'text = "ignored"' if inbound_url is None else f'get-url = "{inbound_url}?{query}"'
    config = folder / "kannel.conf"
    config.write_text(CONFIG.format(**ports, user=USER, password=PASSWORD, service=service))
    server = Kannel(folder, ports)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(running(bearerbox, str(config), folder=folder))
        await until_open(ports["smsbox"])
        await until_open(ports["smsc"])
        stack.push_async_callback(server.stop_operator)
        await server.start_operator()
        await stack.enter_async_context(running(smsbox, str(config), folder=folder))
        await until_open(ports["sendsms"])
        yield server


async def _read(operator: asyncio.subprocess.Process, parts: list[Part]) -> None:
    """Add what fakesmsc logs to `parts`."""
    assert operator.stdout is not None
    async for line in operator.stdout:
        parts.extend(read_part(received) for received in RECEIVED.finditer(line.rstrip()))
