"""Count the SMS parts of a text. Source of the rules: 3GPP TS 23.038, sections 6.1.2 and 6.2.

One SMS holds 140 octets: 160 characters of 7 bits (septets) in the alphabet GSM 03.38, or 70
characters of 16 bits in UCS-2, which is used for all other texts. A longer text is sent in several
parts, each of which uses 6 octets to identify itself (3GPP TS 23.040, section 9.2.3.24.1).
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

GSM7_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
"""Characters of the default alphabet of GSM 03.38, of one septet each."""
GSM7_EXTENSION = frozenset("\f^{}\\[~]|€")
"""Characters of its extension table, of two septets each: an escape and the character."""
MAX_SINGLE_UNIT = "\uffff"
"""The last character that takes one UTF-16 code unit. Those above it take two."""

SmsEncoding = Literal["GSM 03.38", "UCS-2"]


class PartCapacity(NamedTuple):
    """How many units a part holds: septets in GSM 03.38, UTF-16 code units in UCS-2."""

    single: int
    """When the text has only one part."""
    joined: int
    """When the text has several parts."""


PART_CAPACITY: dict[SmsEncoding, PartCapacity] = {
    "GSM 03.38": PartCapacity(single=160, joined=153),
    "UCS-2": PartCapacity(single=70, joined=67),
}


class TextSize(msgspec.Struct, frozen=True):
    """The length of a text as phone networks count it."""

    characters: int
    """Unicode code points."""
    encoding: SmsEncoding
    units: int
    """Length of the text: septets in GSM 03.38, UTF-16 code units in UCS-2."""
    parts: int
    """0 for an empty text."""
    left: int
    """Units still free in the last part; the capacity of a whole part for an empty text."""
    forced_by: str | None
    """The first character that requires UCS-2; None when there is none."""


def count_parts(text: str) -> TextSize:
    """Return the size of a text in characters, units and parts."""
    forced_by = next((c for c in text if c not in GSM7_BASIC and c not in GSM7_EXTENSION), None)
    if forced_by is None:
        encoding: SmsEncoding = "GSM 03.38"
        units_of_characters = [2 if c in GSM7_EXTENSION else 1 for c in text]
    else:
        encoding = "UCS-2"
        units_of_characters = [2 if c > MAX_SINGLE_UNIT else 1 for c in text]
    units = sum(units_of_characters)
    capacity = PART_CAPACITY[encoding]
    if units <= capacity.single:
        parts, left = min(1, units), capacity.single - units  # an empty text has no part
    else:
        parts, left = _fill_parts(units_of_characters, capacity.joined)
    return TextSize(len(text), encoding, units, parts, left, forced_by)


def _fill_parts(units_of_characters: Iterable[int], capacity: int) -> tuple[int, int]:
    """Return the number of parts, and the units left in the last part.

    A character of two units is never split: if it does not fit, it starts the next part.
    """
    parts, left = 1, capacity
    for units in units_of_characters:
        if units > left:
            parts, left = parts + 1, capacity
        left -= units
    return parts, left
