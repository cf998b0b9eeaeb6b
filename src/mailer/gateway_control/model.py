"""A gateway with what it has done lately, as the API and the pages show it."""

from typing import Annotated, Any, ClassVar, Self

import msgspec
from msgspec import Meta

from mailer.errors import NotFoundError
from mailer.gateway.status import GatewayStatus
from mailer.gateway_control.delivery import DeliveryCounts, DeliveryDrop, find_drop


class GatewayNotFoundError(NotFoundError):
    """There is no such gateway."""


class GatewayError(msgspec.Struct, frozen=True):
    """Messages that were not delivered for one reason."""

    reason: str
    messages: int


class GatewayOutcomes(msgspec.Struct, frozen=True):
    """The messages that went through a gateway and got their outcome in the last 24 hours."""

    delivered: int = 0
    undelivered: int = 0
    unknown: int = 0
    parts: int = 0
    """Number of SMS of the accepted messages."""
    errors: tuple[GatewayError, ...] = ()
    """The most frequent first."""
    delivery: DeliveryCounts = DeliveryCounts()
    """Those of the messages that were accepted."""
    last_hour: DeliveryCounts = DeliveryCounts()
    """Messages that were accepted in the last hour."""
    day_before: DeliveryCounts = DeliveryCounts()
    """Messages that were accepted in the 24 hours before that."""


class DeliveryByCode(msgspec.Struct, frozen=True):
    """The messages to one operator code that a gateway accepted in a period."""

    operator_code: str
    counts: DeliveryCounts


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
        "awaits_receipts": True,
        "state": "out",
        "breaker": "open",
        "held": {"since": "2030-01-15T06:00:00Z", "reason": "http_503"},
        "retry_at": "2030-01-15T06:00:15Z",
        "failures": 10,
        "rate": 100.0,
        "latency": 0.5,
        "requests_in_flight": 0,
        "accepted": 1200,
        "delivered": 1120,
        "undelivered": 60,
        "unknown": 2,
        "awaiting": 50,
        "no_receipt": 0,
        "delivery_rate": 0.974,
        "delivery_drop": None,
        "parts": 2400,
        "cost": 6000.0,
        "errors": [
            {"reason": "not_delivered_30003", "messages": 30},
            {"reason": "rejected_400", "messages": 30},
        ],
    }

    accepted: Annotated[
        int,
        Meta(description="Messages that it accepted, whatever their receipts have said since."),
    ]
    delivered: Annotated[
        int,
        Meta(
            description="Those of `accepted` that are delivered, as receipts say. All of them if"
            " the gateway sends no receipts."
        ),
    ]
    undelivered: Annotated[
        int, Meta(description="Messages that it rejected, or that a receipt calls undelivered.")
    ]
    unknown: int
    awaiting: Annotated[int, Meta(description="Those of `accepted` that await a receipt.")]
    no_receipt: Annotated[
        int, Meta(description="Those of `accepted` for which no receipt came in time.")
    ]
    delivery_rate: Annotated[
        float | None,
        Meta(
            description="Share of `accepted`, without `awaiting`, that is delivered. Null if that"
            " is none, and for gateways without receipts."
        ),
    ]
    delivery_drop: Annotated[
        DeliveryDrop | None,
        Meta(description="How far the delivery rate has fallen; null if it has not."),
    ]
    parts: Annotated[int, Meta(description="Number of SMS of the accepted messages.")]
    cost: Annotated[float | None, Meta(description="`parts` times `price`; null without a price.")]
    errors: Annotated[
        list[GatewayError],
        Meta(description="Undelivered and unknown messages by reason, the most frequent first."),
    ]

    @classmethod
    def of(cls, status: GatewayStatus, counts: GatewayOutcomes) -> Self:
        """Return a gateway with this status and these counts."""
        cost = None if status.price is None else round(counts.parts * status.price, 2)
        delivery = counts.delivery
        return cls(
            **msgspec.structs.asdict(status),
            accepted=delivery.accepted,
            delivered=counts.delivered,
            undelivered=counts.undelivered,
            unknown=counts.unknown,
            awaiting=delivery.awaiting,
            no_receipt=delivery.no_receipt,
            delivery_rate=delivery.rate if status.awaits_receipts else None,
            delivery_drop=(
                find_drop(counts.last_hour, counts.day_before) if status.awaits_receipts else None
            ),
            parts=counts.parts,
            cost=cost,
            errors=list(counts.errors),
        )


class ReleasedMessages(msgspec.Struct, frozen=True):
    """Messages that other gateways may send from now on."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"messages": 12}

    messages: int
