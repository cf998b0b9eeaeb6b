"""How many SMS a text takes. Source of the rules: 3GPP TS 23.038, sections 6.1.2 and 6.2.

One SMS holds 140 octets. A longer text is joined of parts that give up six of them to say which
part they are (3GPP TS 23.040, section 9.2.3.24.1).
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
"""Characters of the default alphabet: one septet each."""
EXTENSION = frozenset("\f^{}\\[~]|€")
"""Characters of its extension table: an escape and one more septet."""
LAST_OF_ONE_UNIT = "\uffff"
"""Characters beyond take two UTF-16 code units: a surrogate pair."""

Encoding = Literal["GSM 03.38", "UCS-2"]
ROOM: dict[Encoding, tuple[int, int]] = {"GSM 03.38": (160, 153), "UCS-2": (70, 67)}
"""Units of a text that is a single part, and of each part of one that is joined."""


class TextSize(msgspec.Struct, frozen=True):
    """How long a text is, as a phone network counts."""

    characters: int
    """Unicode code points."""
    encoding: Encoding
    units: int
    """Septets in GSM 03.38, UTF-16 code units in UCS-2."""
    parts: int
    """0 for an empty text."""
    left: int
    """Units still free in the last part; what follows an empty text has a whole part."""
    forced_by: str | None
    """The first character that only UCS-2 can carry; None when there is none."""


def size_of(text: str) -> TextSize:
    """Return how many parts a text takes, and why."""
    forced_by = next((c for c in text if c not in BASIC and c not in EXTENSION), None)
    if forced_by is None:
        encoding: Encoding = "GSM 03.38"
        costs = [2 if c in EXTENSION else 1 for c in text]
    else:
        encoding = "UCS-2"
        costs = [2 if c > LAST_OF_ONE_UNIT else 1 for c in text]
    units = sum(costs)
    single, joined = ROOM[encoding]
    if units <= single:
        parts, left = min(1, units), single - units
    else:
        parts, left = _fill(costs, joined)
    return TextSize(len(text), encoding, units, parts, left, forced_by)


def _fill(costs: Iterable[int], room: int) -> tuple[int, int]:
    """Return how many parts are filled one after the other, and the units left in the last.

    What does not fit whole begins the next part: no pair is split over two.
    """
    parts, left = 1, room
    for cost in costs:
        if cost > left:
            parts, left = parts + 1, room
        left -= cost
    return parts, left
