"""The status of gateways, for the API and the pages: how this worker uses each of them."""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mailer.gateway.breaker import BreakerState, Outage
from mailer.gateway.channel import PAUSED, Channel

GatewayState = Literal["up", "paused", "out"]


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of a gateway, and how this worker uses it."""

    name: str
    kind: Annotated[str, Meta(description="A shipped kind, or the path of a profile.")]
    order: Annotated[
        int, Meta(description="Gateways with the lowest order of those that are up are used.")
    ]
    weight: Annotated[
        int | None,
        Meta(
            description="Share of the messages among gateways of the same order. Null for all of"
            " them: each gets as many as it can take."
        ),
    ]
    operator_codes: Annotated[list[str] | None, Meta(description="Null for all.")]
    sender: Annotated[str | None, Meta(description="Name or number that clients see.")]
    price: Annotated[float | None, Meta(description="Price of one part of a text.")]
    awaits_receipts: Annotated[
        bool,
        Meta(
            description="Whether an accepted message is `sent` until a receipt comes. If not, it is"
            " `delivered` at once."
        ),
    ]
    state: Annotated[
        GatewayState,
        Meta(
            description="`paused`: a user has paused it, for all workers. `out`: the breaker of"
            " this worker is not closed. `up`: messages are sent."
        ),
    ]
    breaker: Annotated[
        BreakerState,
        Meta(
            description="Of this worker. `open`: nothing is sent because of failures. `half_open`:"
            " a single message probes whether the gateway works again."
        ),
    ]
    held: Annotated[
        Outage | None, Meta(description="Since when and why it is not up; null while it is.")
    ]
    retry_at: Annotated[
        datetime | None, Meta(description="When the next probe is permitted; null while closed.")
    ]
    failures: Annotated[int, Meta(description="Consecutive failures in this worker.")]
    rate: Annotated[
        float | None,
        Meta(
            description="Messages a second that it can take from this worker, as measured or as"
            " limited. Null until it has answered, if no limit is set."
        ),
    ]
    latency: Annotated[
        float | None, Meta(description="Mean seconds of a request of this worker; null before.")
    ]
    requests_in_flight: Annotated[int, Meta(description="Open requests of this worker.")]


def status_of(channel: Channel, paused_at: datetime | None) -> GatewayStatus:
    """Return the status of a gateway that is paused since `paused_at`, or not if that is None."""
    config, breaker = channel.config, channel.breaker
    return GatewayStatus(
        name=channel.name,
        kind=config.kind,
        order=config.order,
        weight=config.weight,
        operator_codes=config.operator_codes,
        sender=config.sender,
        price=config.price,
        awaits_receipts=channel.receipts.is_awaited,
        state="paused" if paused_at else "up" if breaker.state == "closed" else "out",
        breaker=breaker.state,
        held=Outage(paused_at, PAUSED) if paused_at else breaker.outage,
        retry_at=breaker.retry_at,
        failures=breaker.failures,
        rate=channel.throughput.rate,
        latency=channel.throughput.mean_seconds,
        requests_in_flight=channel.in_flight,
    )


def list_statuses(channels: Iterable[Channel]) -> list[GatewayStatus]:
    """Return the status of each gateway, with the pauses that this worker has read last."""
    return [status_of(channel, channel.paused_at) for channel in channels]
