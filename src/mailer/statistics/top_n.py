"""The largest of many counts, and the sum of the others, for tables on pages."""

from collections.abc import Iterable

import msgspec

from mailer.statuses import MessageCounts


class NamedCounts(msgspec.Struct, frozen=True):
    """Counts by status of the messages that share a value, such as a time zone."""

    name: str
    """The value that the messages share; empty for a sum over several values."""
    messages: MessageCounts


class TopN(msgspec.Struct, frozen=True):
    """The largest counts, and the sum of the others."""

    shown: list[NamedCounts]
    """The largest counts, largest first."""
    others_number: int
    """How many counts are not shown."""
    others: NamedCounts
    """Sum of the counts that are not shown."""


def top_n(counts: Iterable[tuple[str, MessageCounts]], limit: int) -> TopN:
    """Return the `limit` counts with the most messages, and the sum of the others.

    Each of `counts` is a name and its counts.
    """
    ordered = sorted(
        (NamedCounts(name, messages) for name, messages in counts),
        key=lambda counts: (-counts.messages.total, counts.name),
    )
    shown, others = ordered[:limit], ordered[limit:]
    sums = {
        status: sum(getattr(counts.messages, status) for counts in others)
        for status in MessageCounts.__struct_fields__
    }
    return TopN(shown, len(others), NamedCounts("", MessageCounts(**sums)))
