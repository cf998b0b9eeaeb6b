"""A message centre of a network operator on loopback, for SMPP 3.4 connections."""

import asyncio
import contextlib
import re
import struct
from collections.abc import AsyncIterator

from tests.message_parts import Part, decode_ucs2

HEADER = struct.Struct(">IIII")
"""Length, command, status and sequence number of a PDU (SMPP 3.4, section 3.2)."""
RESPONSE = 0x8000_0000
"""Added to a command, makes that of the response."""
SUBMIT_SM, BIND_TRANSCEIVER = 0x0000_0004, 0x0000_0009
NAMED = (SUBMIT_SM, BIND_TRANSCEIVER)
"""Commands whose response has a text: the id of the message, or the name of the message centre."""
HAS_USER_DATA_HEADER = 0x40
"""In `esm_class`."""
UCS2 = 8
"""The `data_coding` of UCS-2; 0 is the alphabet GSM 03.38, each character in a byte of its own."""
SUBMISSION = re.compile(
    rb"[^\0]*\0..[^\0]*\0..(?P<phone>[^\0]*)\0(?P<esm_class>.)..[^\0]*\0[^\0]*\0.."
    rb"(?P<data_coding>.).(?P<length>.)(?P<data>.*)",
    re.DOTALL,
)
"""Body of `submit_sm` (SMPP 3.4, section 4.4.1)."""

ESCAPE = "\x1b"
GSM_BASIC = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
"""Characters of the codes 0 to 127 (3GPP TS 23.038, section 6.2.1)."""
GSM_EXTENSION = dict(zip("\nΛ()/<=>¡e", "\f^{}\\[~]|€", strict=True))
"""What a character stands for after an escape (section 6.2.1.1)."""


def decode_gsm(data: bytes) -> str:
    """Return a text in the alphabet GSM 03.38."""
    characters = iter(GSM_BASIC[code] for code in data)
    return "".join(GSM_EXTENSION[next(characters)] if c == ESCAPE else c for c in characters)


def read_submission(body: bytes) -> Part:
    """Return the part of a text that a `submit_sm` carries."""
    fields = SUBMISSION.fullmatch(body)
    assert fields is not None
    data = fields["data"][: fields["length"][0]]  # optional fields may follow
    reference, total, number = 0, 1, 1
    if fields["esm_class"][0] & HAS_USER_DATA_HEADER:  # 3GPP TS 23.040, section 9.2.3.24.1
        reference, total, number = data[3:6]
        data = data[6:]
    decode = decode_ucs2 if fields["data_coding"][0] == UCS2 else decode_gsm
    return Part(fields["phone"].decode(), reference, total, number, data, decode)


class MessageCentre:
    """Accepts every message, and keeps it."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.port = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle a connection until it ends."""
        with contextlib.suppress(EOFError, ConnectionError), contextlib.closing(writer):
            while True:
                length, command, _, sequence = HEADER.unpack(await reader.readexactly(HEADER.size))
                body = await reader.readexactly(length - HEADER.size)
                if command == SUBMIT_SM:
                    self.parts.append(read_submission(body))
                text = f"{len(self.parts)}\0".encode() if command in NAMED else b""
                writer.write(HEADER.pack(HEADER.size + len(text), RESPONSE | command, 0, sequence))
                writer.write(text)


@contextlib.asynccontextmanager
async def message_centre() -> AsyncIterator[MessageCentre]:
    """Run a message centre on a free port."""
    centre = MessageCentre()
    server = await asyncio.start_server(centre.talk, "127.0.0.1", 0)
    async with server:
        centre.port = server.sockets[0].getsockname()[1]
        yield centre
