"""The largest of many counts, and the sum of the rest."""

from collections.abc import Iterable

import msgspec

from mailer.statuses import MessageCounts


class NamedCounts(msgspec.Struct, frozen=True):
    """Counts by status of the messages that share a value, such as a time zone."""

    name: str
    messages: MessageCounts


class TopN(msgspec.Struct, frozen=True):
    """The largest counts, and the rest."""

    shown: list[NamedCounts]
    others: int
    """Number of counts that are not shown."""
    rest: NamedCounts
    """Sum of the counts that are not shown."""


def top_n(counts: Iterable[tuple[str, MessageCounts]], limit: int) -> TopN:
    """Return the `limit` counts with the most messages, largest first, and the sum of the rest."""
    named = sorted(
        (NamedCounts(name, messages) for name, messages in counts),
        key=lambda counts: (-counts.messages.total, counts.name),
    )
    rest = [msgspec.structs.astuple(counts.messages) for counts in named[limit:]]
    sums = MessageCounts.of(
        **{
            name: sum(column)
            for name, column in zip(
                MessageCounts.__struct_fields__, zip(*rest, strict=True), strict=False
            )
        }
    )
    return TopN(named[:limit], len(rest), NamedCounts("", sums))
