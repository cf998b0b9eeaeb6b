"""How many of the messages that a gateway has accepted were delivered, as receipts say."""

from typing import Annotated

import msgspec
from msgspec import Meta

from mailer.statuses import Total

MIN_DROP_MESSAGES = 100
"""Messages of a period whose delivery must be known before periods are compared."""
MIN_DROP = 0.1
"""By how much the delivery rate must be lower than before to count as a drop. With fewer than
`MIN_DROP_MESSAGES`, chance alone would often cause a difference like this."""


class DeliveryCounts(msgspec.Struct, frozen=True):
    """Messages that a gateway accepted in a period."""

    awaiting: Annotated[Total, Meta(description="Their receipt is awaited.")] = 0
    no_receipt: Annotated[Total, Meta(description="No receipt came in time.")] = 0
    delivered: Total = 0
    undelivered: Annotated[Total, Meta(description="The receipt says so.")] = 0

    @property
    def accepted(self) -> int:
        """All messages of the period."""
        return self.awaiting + self.known

    @property
    def known(self) -> int:
        """Messages that await no receipt any more."""
        return self.delivered + self.undelivered + self.no_receipt

    @property
    def rate(self) -> float | None:
        """The delivery rate: the share of `known` that was delivered; None if that is none."""
        return self.delivered / self.known if self.known else None

    def __add__(self, other: "DeliveryCounts") -> "DeliveryCounts":
        """Return the counts of two periods together."""
        return DeliveryCounts(
            *(
                mine + theirs
                for mine, theirs in zip(
                    msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True
                )
            )
        )


class DeliveryDrop(msgspec.Struct, frozen=True):
    """A fall of a gateway's delivery rate, from 0 to 1."""

    last_hour: Annotated[float, Meta(description="Of messages accepted in the last hour.")]
    day_before: Annotated[float, Meta(description="Of those accepted in the 24 hours before.")]


def find_drop(last_hour: DeliveryCounts, day_before: DeliveryCounts) -> DeliveryDrop | None:
    """Return how the delivery rate has fallen; None if it has not, or too little is known."""
    new, old = last_hour.rate, day_before.rate
    if new is None or old is None or old - new < MIN_DROP:
        return None
    if min(last_hour.known, day_before.known) < MIN_DROP_MESSAGES:
        return None
    return DeliveryDrop(new, old)
