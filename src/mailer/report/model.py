"""What statistics and reports say: counts, and what they are counted by."""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Self

import msgspec
from msgspec import Meta

from mailer.message.model import Status

Total = Annotated[int, Meta(ge=0)]


MESSAGES = {
    "scheduled": 900,
    "sending": 50,
    "delivered": 240,
    "undelivered": 10,
    "unknown": 0,
    "cancelled": 0,
}
"""The counts of an example."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """A count for every status that there is."""

    @classmethod
    def of(cls, **known: int) -> Self:
        """Return these counts, and zero of every other status."""
        return cls(**(dict.fromkeys(cls.__struct_fields__, 0) | known))


class MailingCounts(Counts, frozen=True, kw_only=True):
    """Mailings by status."""

    scheduled: Total
    running: Total
    paused: Total
    finished: Total
    cancelled: Total


class MessageCounts(Counts, frozen=True, kw_only=True):
    """Messages by status."""

    scheduled: Total
    sending: Total
    delivered: Total
    undelivered: Total
    unknown: Total
    cancelled: Total


class OutcomeCounts(Counts, frozen=True, kw_only=True):
    """Messages by what became of them."""

    delivered: Total
    undelivered: Total
    unknown: Total
    cancelled: Total


class GeneralStatistics(msgspec.Struct, frozen=True):
    """All mailings, and all their messages, by status."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "mailings": {"scheduled": 1, "running": 1, "paused": 0, "finished": 7, "cancelled": 0},
        "messages": MESSAGES,
    }

    mailings: MailingCounts
    messages: MessageCounts


class ReasonCount(msgspec.Struct, frozen=True):
    """Messages of one status that have one reason, or none."""

    status: Status
    reason: str | None
    messages: Total


class OperatorCodeCounts(msgspec.Struct, frozen=True):
    """Messages to clients of one operator, by status."""

    operator_code: Annotated[str, Meta(description="As the clients had it when they were taken.")]
    messages: MessageCounts


class TimeZoneCounts(msgspec.Struct, frozen=True):
    """Messages to clients in one time zone, by status."""

    time_zone: Annotated[str, Meta(description="As the clients had it when they were taken.")]
    messages: MessageCounts


class AttemptsCounts(msgspec.Struct, frozen=True):
    """Messages that took so many attempts, by what became of them."""

    attempts: Total
    messages: OutcomeCounts


class Bucket(msgspec.Struct, frozen=True):
    """What became of messages from `start` on, until the next bucket starts."""

    start: datetime
    messages: OutcomeCounts


class Series(msgspec.Struct, frozen=True):
    """Outcomes over time, oldest first, from the first to the last without a gap."""

    bucket: Annotated[int, Meta(ge=1, description="Seconds that a bucket is long.")]
    buckets: Annotated[list[Bucket], Meta(description="At most 500.")]


class MailingStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One mailing in detail.

    `messages` is the ledger. Reasons, operator codes and time zones add up to it, once the mailing
    has begun; attempts and buckets to what of it has an outcome.
    """

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "mailing_id": 1,
        "clients_count": 1200,
        "messages": MESSAGES,
        "reasons": [
            {"status": "scheduled", "reason": None, "messages": 880},
            {"status": "delivered", "reason": None, "messages": 240},
            {"status": "sending", "reason": None, "messages": 50},
            {"status": "scheduled", "reason": "http_503", "messages": 20},
            {"status": "undelivered", "reason": "rejected_400", "messages": 10},
        ],
        "operator_codes": [{"operator_code": "916", "messages": MESSAGES}],
        "time_zones": [{"time_zone": "Europe/Moscow", "messages": MESSAGES}],
        "attempts": [
            {
                "attempts": 1,
                "messages": {"delivered": 240, "undelivered": 10, "unknown": 0, "cancelled": 0},
            }
        ],
        "over_time": {
            "bucket": 60,
            "buckets": [
                {
                    "start": "2030-01-15T06:00:00Z",
                    "messages": {
                        "delivered": 240,
                        "undelivered": 10,
                        "unknown": 0,
                        "cancelled": 0,
                    },
                }
            ],
        },
        "rate": 4.0,
        "first_sent_at": "2030-01-15T06:00:00.120000Z",
        "last_sent_at": "2030-01-15T06:00:59.980000Z",
        "expected_end": "2030-01-15T06:04:57.480000Z",
    }

    mailing_id: int
    clients_count: Total
    messages: MessageCounts
    reasons: list[ReasonCount]
    operator_codes: list[OperatorCodeCounts]
    time_zones: list[TimeZoneCounts]
    attempts: Annotated[list[AttemptsCounts], Meta(description="Of what has an outcome.")]
    over_time: Series
    rate: Annotated[
        float,
        Meta(
            ge=0,
            description="Messages sent a second, over the last minute, or since the first was sent"
            " if that is less.",
        ),
    ]
    first_sent_at: datetime | None
    last_sent_at: datetime | None
    expected_end: Annotated[
        datetime | None,
        Meta(
            description="When nothing will be left to send, by the forecast that the pages show; at"
            " the latest the mailing's end. Null while it is not known, and while the mailing is"
            " paused or held."
        ),
    ]
