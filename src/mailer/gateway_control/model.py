"""A gateway with what it has done lately, as the API and the pages show it."""

from typing import Annotated, Any, ClassVar, Self

import msgspec
from msgspec import Meta

from mailer.client.model import Phone
from mailer.client.phone import normalize_phone
from mailer.errors import NotFoundError
from mailer.gateway.status import GatewayStatus
from mailer.mailing.model import Text
from mailer.validation import Input


class GatewayNotFoundError(NotFoundError):
    """There is no such gateway."""


class GatewayError(msgspec.Struct, frozen=True):
    """Messages that were not delivered for one reason."""

    reason: str
    messages: int


class GatewayOutcomes(msgspec.Struct, frozen=True):
    """The messages that went through a gateway and got their outcome in a period."""

    delivered: int = 0
    undelivered: int = 0
    unknown: int = 0
    parts: int = 0
    """Number of SMS of the delivered messages."""
    errors: tuple[GatewayError, ...] = ()
    """The most frequent first."""


class GatewayDetail(GatewayStatus, frozen=True, kw_only=True):
    """A gateway: its state, and the outcomes of its messages in the last 24 hours.

    `breaker`, `failures`, `rate`, `latency` and `requests_in_flight` are those of the worker that
    answers, as is the state `out`. A pause and the outcomes are of all workers.
    """

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "name": "main",
        "kind": "twilio",
        "order": 1,
        "weight": None,
        "operator_codes": None,
        "sender": "Acme",
        "price": 2.5,
        "state": "out",
        "breaker": "open",
        "held": {"since": "2030-01-15T06:00:00Z", "reason": "http_503"},
        "retry_at": "2030-01-15T06:00:15Z",
        "failures": 10,
        "rate": 100.0,
        "latency": 0.5,
        "requests_in_flight": 0,
        "accepted": 1200,
        "delivered": 1200,
        "undelivered": 30,
        "unknown": 2,
        "parts": 2400,
        "cost": 6000.0,
        "errors": [{"reason": "rejected_400", "messages": 30}],
    }

    accepted: Annotated[
        int, Meta(description="Messages that it accepted; at present they count as delivered.")
    ]
    delivered: int
    undelivered: int
    unknown: int
    parts: Annotated[int, Meta(description="Number of SMS of the delivered messages.")]
    cost: Annotated[float | None, Meta(description="`parts` times `price`; null without a price.")]
    errors: Annotated[
        list[GatewayError],
        Meta(description="Undelivered and unknown messages by reason, the most frequent first."),
    ]

    @classmethod
    def of(cls, status: GatewayStatus, counts: GatewayOutcomes) -> Self:
        """Return a gateway with this status and these counts."""
        cost = None if status.price is None else round(counts.parts * status.price, 2)
        values = msgspec.structs.asdict(status) | msgspec.structs.asdict(counts)
        values |= {"accepted": counts.delivered, "errors": list(counts.errors), "cost": cost}
        return cls(**values)


class ReleasedMessages(msgspec.Struct, frozen=True):
    """Messages that other gateways may send from now on."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"messages": 12}

    messages: int


class SingleMessage(Input, frozen=True, kw_only=True):
    """A test message, which belongs to no mailing."""

    phone: Annotated[Phone, Meta(extra={"normalize": normalize_phone})]
    text: Text
