"""The largest of many counts, and the rest of them in one sum."""

from collections.abc import Iterable

import msgspec

from mailer.report.model import MessageCounts


class Named(msgspec.Struct, frozen=True):
    """Messages that have something in common, by status."""

    name: str
    messages: MessageCounts

    @property
    def total(self) -> int:
        """All of them."""
        return sum(msgspec.structs.astuple(self.messages))


class Largest(msgspec.Struct, frozen=True):
    """The largest counts, and what is not among them."""

    shown: list[Named]
    others: int
    """How many counts are not shown."""
    rest: Named
    """The sum of those."""


def largest(counts: Iterable[tuple[str, MessageCounts]], most: int) -> Largest:
    """Return the `most` counts with the most messages, in that order."""
    named = sorted(
        (Named(name, messages) for name, messages in counts),
        key=lambda each: (-each.total, each.name),
    )
    rest = [msgspec.structs.astuple(each.messages) for each in named[most:]]
    sums = MessageCounts.of(
        **{
            name: sum(column)
            for name, column in zip(
                MessageCounts.__struct_fields__, zip(*rest, strict=True), strict=False
            )
        }
    )
    return Largest(named[:most], len(rest), Named("", sums))
