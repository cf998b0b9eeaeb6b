"""Progress of started mailings: the rate of sending, and what a mailing waits for."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ARRAY, BigInteger, Row, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.sql import add_up
from mailer.mailing.model import Mailing
from mailer.statuses import SENT

MINUTE_SECONDS = 60


class Wait(msgspec.Struct, frozen=True):
    """A wait of a running mailing until its next message is due."""

    until: datetime
    time_zone: str
    """Time zone of the client whose message is due first."""
    is_retry: bool
    """Whether that message waits for its next attempt; otherwise it waits for its window."""
    is_past_end: bool
    """Whether that message is due only at the mailing's end or later, and therefore expires."""


class MailingProgress(msgspec.Struct, frozen=True):
    """A mailing and its progress."""

    mailing: Mailing
    rate: float
    """Messages sent a second, over the last minute, or since the first was sent if that is less."""
    first_sent_at: datetime | None
    last_sent_at: datetime | None
    wait: Wait | None
    """None when messages are due or being sent, or none are left."""


# `next_message` is the scheduled message that is due first, with nulls when there is none. Messages
# are read by route, because the index has those of a route in the order of their due times.
# `sent_last_minute` is the sum of the counters of the last 60 seconds.
SELECT_PROGRESS = text(f"""
    SELECT mailing_id, first_sent_at, last_sent_at, now() AS now,
        next_message.due_at, next_message.time_zone, next_message.retry_at,
        (SELECT coalesce(sum({add_up(SENT)}), 0)::bigint FROM all_message_counts
            WHERE mailing_id = mailing_counts.mailing_id AND dimension = 'second' AND key = ''
                AND bucket_start > date_trunc('second', now() - interval '1 minute'))
            AS sent_last_minute
    FROM mailing_counts LEFT JOIN LATERAL (
        SELECT first_of_route.* FROM route CROSS JOIN LATERAL (
            SELECT due_at, time_zone, retry_at FROM message
            WHERE mailing_id = mailing_counts.mailing_id AND route = route.id
                AND status = 'scheduled'
            ORDER BY due_at LIMIT 1) AS first_of_route
        ORDER BY due_at LIMIT 1) AS next_message ON true
    WHERE mailing_id = ANY (:mailings)""").bindparams(  # noqa: S608  # no user input
    bindparam("mailings", type_=ARRAY(BigInteger))
)


async def get_progress(
    connection: AsyncConnection, mailings: Sequence[Mailing]
) -> list[MailingProgress]:
    """Return the progress of those of `mailings` that still exist, in the same order."""
    rows = await connection.execute(
        SELECT_PROGRESS, {"mailings": [mailing.id for mailing in mailings]}
    )
    by_id = {row.mailing_id: row for row in rows}
    return [_progress(mailing, by_id[mailing.id]) for mailing in mailings if mailing.id in by_id]


def _progress(mailing: Mailing, row: Row[Any]) -> MailingProgress:
    return MailingProgress(
        mailing, _rate(row), row.first_sent_at, row.last_sent_at, _wait(mailing, row)
    )


def _wait(mailing: Mailing, row: Row[Any]) -> Wait | None:
    """Return the wait for `next_message`, unless it is due already or a message is being sent."""
    if mailing.status != "running" or mailing.sending_messages or row.due_at is None:
        return None
    if row.due_at <= row.now:
        return None
    return Wait(
        row.due_at,
        row.time_zone,
        # a due time after the end of its pause means that it waits for its sending window
        is_retry=row.due_at == row.retry_at,
        is_past_end=row.due_at >= mailing.datetime_end,
    )


def _rate(row: Row[Any]) -> float:
    """Return the `rate` of `MailingProgress`. Times of less than a second count as one second."""
    if row.first_sent_at is None:
        return 0.0
    seconds = max(1.0, min(MINUTE_SECONDS, (row.now - row.first_sent_at).total_seconds()))
    return float(row.sent_last_minute / seconds)
