"""Progress of started mailings: the rate of sending."""

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


class MailingProgress(msgspec.Struct, frozen=True):
    """A mailing and its progress."""

    mailing: Mailing
    rate: float
    """Messages sent a second, over the last minute, or since the first was sent if that is less."""
    first_sent_at: datetime | None
    last_sent_at: datetime | None


# `sent_last_minute` is the sum of the counters of the last 60 seconds.
SELECT_PROGRESS = text(f"""
    SELECT mailing_id, first_sent_at, last_sent_at, now() AS now,
        (SELECT coalesce(sum({add_up(SENT)}), 0)::bigint FROM all_message_counts
            WHERE mailing_id = mailing_counts.mailing_id AND dimension = 'second' AND key = ''
                AND bucket_start > date_trunc('second', now() - interval '1 minute'))
            AS sent_last_minute
    FROM mailing_counts WHERE mailing_id = ANY (:mailings)""").bindparams(  # noqa: S608  # no user input
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
    return MailingProgress(mailing, _rate(row), row.first_sent_at, row.last_sent_at)


def _rate(row: Row[Any]) -> float:
    """Return the `rate` of `MailingProgress`. Times of less than a second count as one second."""
    if row.first_sent_at is None:
        return 0.0
    seconds = max(1.0, min(MINUTE_SECONDS, (row.now - row.first_sent_at).total_seconds()))
    return float(row.sent_last_minute / seconds)
