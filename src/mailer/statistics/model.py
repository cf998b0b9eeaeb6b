"""Counts in statistics and reports."""

from datetime import datetime
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from mailer.forecast.cost import Cost
from mailer.statuses import (
    EXAMPLE_COUNTS,
    EXAMPLE_OUTCOMES,
    Counts,
    MessageCounts,
    MessageStatus,
    OutcomeCounts,
    Total,
)


class MailingCounts(Counts, frozen=True, kw_only=True):
    """Mailings by status."""

    draft: Total
    scheduled: Total
    running: Total
    paused: Total
    finished: Total
    cancelled: Total


class GeneralStatistics(msgspec.Struct, frozen=True):
    """All mailings by status, and all their messages by status."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "mailings": {
            "draft": 2,
            "scheduled": 1,
            "running": 1,
            "paused": 0,
            "finished": 7,
            "cancelled": 0,
        },
        "messages": EXAMPLE_COUNTS,
    }

    mailings: MailingCounts
    messages: MessageCounts


class ReasonCount(msgspec.Struct, frozen=True):
    """Messages with one status and one reason, or without a reason."""

    status: MessageStatus
    reason: str | None
    messages: Total


class OperatorCodeCounts(msgspec.Struct, frozen=True):
    """Messages to clients with one operator code, by status."""

    operator_code: Annotated[
        str, Meta(description="The clients' operator code when their messages were created.")
    ]
    messages: MessageCounts


class TimeZoneCounts(msgspec.Struct, frozen=True):
    """Messages to clients in one time zone, by status."""

    time_zone: Annotated[
        str, Meta(description="The clients' time zone when their messages were created.")
    ]
    messages: MessageCounts


class AttemptsCounts(msgspec.Struct, frozen=True):
    """Messages with one number of attempts, by outcome."""

    attempts: Total
    messages: OutcomeCounts


class GatewayCounts(msgspec.Struct, frozen=True):
    """Messages that were sent through one gateway, by outcome."""

    gateway: Annotated[str, Meta(description="The gateway of the last attempt.")]
    messages: OutcomeCounts
    parts: Annotated[Total, Meta(description="Number of SMS of the messages that it accepted.")]


class TextVersionCounts(msgspec.Struct, frozen=True):
    """Messages that were tried with one version of the text, by outcome."""

    text_version: Annotated[int, Meta(ge=1, description="Version of the text in the last attempt.")]
    messages: OutcomeCounts


class Bucket(msgspec.Struct, frozen=True):
    """Outcomes of messages from `start` until the start of the next bucket."""

    start: datetime
    messages: OutcomeCounts


class Series(msgspec.Struct, frozen=True):
    """Outcomes over time: all buckets from the first to the last outcome, oldest first."""

    bucket: Annotated[int, Meta(ge=1, description="Length of a bucket in seconds.")]
    buckets: Annotated[list[Bucket], Meta(description="At most 500.")]


class MailingStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Detailed statistics of one mailing.

    Once the mailing has started, reasons, operator codes and time zones each add up to `messages`.
    Attempts and buckets each add up to the messages that have an outcome. Gateways, and versions of
    the text, add up to those of them that were tried.
    """

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "mailing_id": 1,
        "clients_count": 1200,
        "messages": EXAMPLE_COUNTS,
        "reasons": [
            {"status": "scheduled", "reason": None, "messages": 880},
            {"status": "delivered", "reason": None, "messages": 200},
            {"status": "sending", "reason": None, "messages": 50},
            {"status": "sent", "reason": None, "messages": 40},
            {"status": "scheduled", "reason": "http_503", "messages": 20},
            {"status": "undelivered", "reason": "not_delivered_30003", "messages": 10},
        ],
        "operator_codes": [{"operator_code": "916", "messages": EXAMPLE_COUNTS}],
        "time_zones": [{"time_zone": "Europe/Moscow", "messages": EXAMPLE_COUNTS}],
        "attempts": [{"attempts": 1, "messages": EXAMPLE_OUTCOMES}],
        "gateways": [{"gateway": "main", "messages": EXAMPLE_OUTCOMES, "parts": 480}],
        "text_versions": [{"text_version": 1, "messages": EXAMPLE_OUTCOMES}],
        "over_time": {
            "bucket": 60,
            "buckets": [{"start": "2030-01-15T06:00:00Z", "messages": EXAMPLE_OUTCOMES}],
        },
        "rate": 4.0,
        "first_sent_at": "2030-01-15T06:00:00.120000Z",
        "last_sent_at": "2030-01-15T06:00:59.980000Z",
        "expected_end": "2030-01-15T06:04:57.480000Z",
        "cost": Cost.EXAMPLE,
    }

    mailing_id: int
    clients_count: Total
    messages: MessageCounts
    reasons: list[ReasonCount]
    operator_codes: list[OperatorCodeCounts]
    time_zones: list[TimeZoneCounts]
    attempts: Annotated[list[AttemptsCounts], Meta(description="Of messages that have an outcome.")]
    gateways: Annotated[
        list[GatewayCounts], Meta(description="Of messages that have an outcome and were tried.")
    ]
    text_versions: Annotated[
        list[TextVersionCounts],
        Meta(description="Of messages that have an outcome and were tried."),
    ]
    over_time: Series
    rate: Annotated[
        float,
        Meta(
            ge=0,
            description="Messages sent a second, over the last minute, or since the first message"
            " was sent if that is less.",
        ),
    ]
    first_sent_at: datetime | None
    last_sent_at: datetime | None
    expected_end: Annotated[
        datetime | None,
        Meta(
            description="Forecast of when no message will be left to send; at the latest the"
            " mailing's end. Null when it is not known, and when the mailing is paused or held."
        ),
    ]
    cost: Annotated[
        Cost, Meta(description="Of the messages that gateways accepted, at present prices.")
    ]
