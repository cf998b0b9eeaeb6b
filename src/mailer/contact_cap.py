"""The contact cap: how many marketing messages a client may get within a span of time."""

import re
from datetime import timedelta
from typing import Literal, Self, get_args

import msgspec

CapUnit = Literal["h", "d"]
"""Hours or days."""
PATTERN = re.compile(r"([0-9]{1,4})/([0-9]{1,4})([hd])", re.ASCII)
HOURS_OF_UNIT: dict[CapUnit, int] = {"h": 1, "d": 24}
MAX_MESSAGES = 100
"""Largest number of messages in a cap: the times of so many are stored for each client."""
MAX_SPAN = timedelta(days=90)
"""Longest span of a cap."""


class ContactCap(msgspec.Struct, frozen=True):
    """At most `messages` marketing messages a client within `length` hours or days before now."""

    messages: int
    length: int
    unit: CapUnit

    @property
    def span(self) -> timedelta:
        """The time before now in which messages count."""
        return timedelta(hours=self.length * HOURS_OF_UNIT[self.unit])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the cap that a text such as `3/7d` or `1/24h` stands for.

        Raises `ValueError`, with the reason as a sentence without a subject.
        """
        if (match := PATTERN.fullmatch(text.strip())) is None:
            message = "must be like 3/7d or 1/24h: messages, a slash, and a span in hours or days"
            raise ValueError(message)
        messages, length, written_unit = match.groups()
        unit = next(unit for unit in get_args(CapUnit) if unit == written_unit)
        cap = cls(int(messages), int(length), unit)
        if not 1 <= cap.messages <= MAX_MESSAGES:
            message = f"the number of messages must be from 1 to {MAX_MESSAGES}"
            raise ValueError(message)
        if not timedelta() < cap.span <= MAX_SPAN:
            message = f"the span must be from 1h to {MAX_SPAN.days}d"
            raise ValueError(message)
        return cap
