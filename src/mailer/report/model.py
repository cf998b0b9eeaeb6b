"""What statistics and reports say: counts, and what they are counted by."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from mailer.message.model import Status

Total = Annotated[int, Meta(ge=0, examples=[3])]


class MailingCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Mailings by status."""

    scheduled: Total = 0
    running: Total = 0
    paused: Total = 0
    finished: Total = 0
    cancelled: Total = 0


class MessageCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Messages by status."""

    scheduled: Total = 0
    sending: Total = 0
    delivered: Total = 0
    undelivered: Total = 0
    unknown: Total = 0
    cancelled: Total = 0


class OutcomeCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Messages by what became of them."""

    delivered: Total = 0
    undelivered: Total = 0
    unknown: Total = 0
    cancelled: Total = 0


class GeneralStatistics(msgspec.Struct, frozen=True):
    """All mailings, and all their messages, by status."""

    mailings: MailingCounts
    messages: MessageCounts


class ReasonCount(msgspec.Struct, frozen=True):
    """Messages of one status that have one reason, or none."""

    status: Status
    reason: Annotated[str, Meta(examples=["timeout"])] | None
    messages: Total


class OperatorCodeCounts(msgspec.Struct, frozen=True):
    """Messages to clients of one operator, by status."""

    operator_code: Annotated[str, Meta(description="As the clients have it now.", examples=["916"])]
    messages: MessageCounts


class TimeZoneCounts(msgspec.Struct, frozen=True):
    """Messages to clients in one time zone, by status."""

    time_zone: Annotated[
        str, Meta(description="As the clients have it now.", examples=["Europe/Moscow"])
    ]
    messages: MessageCounts


class Bucket(OutcomeCounts, frozen=True, kw_only=True):
    """What became of messages from `start` on, until the next bucket starts."""

    start: datetime


class Series(msgspec.Struct, frozen=True):
    """Outcomes over time, oldest first, from the first to the last without a gap."""

    bucket: Annotated[int, Meta(ge=1, description="Seconds that a bucket is long.")]
    buckets: Annotated[list[Bucket], Meta(description="At most 500.")]


class MailingStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One mailing in detail.

    `messages` is the ledger; each of the lists adds up to it, once the mailing has begun.
    """

    mailing_id: int
    clients_count: Total
    messages: MessageCounts
    reasons: list[ReasonCount]
    operator_codes: list[OperatorCodeCounts]
    time_zones: list[TimeZoneCounts]
    over_time: Series
    rate: Annotated[float, Meta(ge=0, description="Messages sent a second, over the last minute.")]
    first_sent_at: datetime | None
    last_sent_at: datetime | None
