"""The parts of texts that a message centre received, and the texts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.processes import until


class Part(NamedTuple):
    """A part of a text. A text of one part has the number 1 and the total 1."""

    phone: str
    reference: int
    """Of all parts of the same text."""
    total: int
    number: int
    data: bytes
    decode: Callable[[bytes], str]
    """Decodes the data of all parts together."""


def decode_ucs2(data: bytes) -> str:
    """Return a text that was sent in 16 bits a character."""
    return data.decode("utf-16-be")


async def until_complete(parts: Sequence[Part], count: int) -> list[tuple[str, str]]:
    """Wait until `parts` has all of `count` messages, and return their phones and texts."""

    async def find_texts() -> list[tuple[str, str]] | None:
        texts = complete_texts(parts)
        return texts if len(texts) >= count else None

    return await until(find_texts)


def complete_texts(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """Return phone and text of each message of which all parts were received."""
    messages: dict[tuple[str, int, int], list[Part]] = {}
    for position, part in enumerate(parts):
        key = (part.phone, part.reference, position if part.total == 1 else -1)
        messages.setdefault(key, []).append(part)
    return [
        (received[0].phone, _join(received))
        for received in messages.values()
        if len(received) == received[0].total
    ]


def _join(parts: list[Part]) -> str:
    ordered = sorted(parts, key=lambda part: part.number)
    return parts[0].decode(b"".join(part.data for part in ordered))
