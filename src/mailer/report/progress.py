"""How far mailings under way are: at which rate they go out, and what they wait for."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ARRAY, BigInteger, Row, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.mailing.model import Mailing

MINUTE = 60


class Wait(msgspec.Struct, frozen=True):
    """A running mailing without a message that is due, until one is."""

    until: datetime
    time_zone: str
    """Of the client whose message is due first."""
    is_retry: bool
    """Whether that message waits for its next attempt; else for its sending window."""
    is_past_end: bool
    """Whether it is due only at the mailing's end or later, and so expires."""


class Progress(msgspec.Struct, frozen=True):
    """A mailing and how it goes on."""

    mailing: Mailing
    rate: float
    """Messages sent a second over the last minute, or since the first was sent."""
    first_sent_at: datetime | None
    last_sent_at: datetime | None
    wait: Wait | None
    """What it waits for; None when something is due or being sent, or nothing is left."""


# The keys are seconds of ten digits: they are in the order of time.
SENT = text("""
    SELECT mailing_id, first_sent_at, last_sent_at, now() AS now,
        soonest.due_at, soonest.time_zone, soonest.retry_at,
        (SELECT coalesce(sum(delivered + "unknown"), 0) FROM (
            SELECT * FROM tally WHERE mailing_id = ledger.mailing_id AND dimension = 'second'
                AND key > trunc(extract(epoch FROM now()) - 60)::text
            UNION ALL SELECT * FROM tally_move
            WHERE mailing_id = ledger.mailing_id AND dimension = 'second'
                AND key > trunc(extract(epoch FROM now()) - 60)::text) AS moved)::bigint AS lately
    FROM ledger LEFT JOIN LATERAL (
        SELECT due_at, time_zone, retry_at FROM message
        WHERE mailing_id = ledger.mailing_id AND status = 'scheduled'
        ORDER BY due_at LIMIT 1) AS soonest ON true
    WHERE mailing_id = ANY (:mailings)""").bindparams(
    bindparam("mailings", type_=ARRAY(BigInteger))
)


async def of_mailings(connection: AsyncConnection, mailings: Sequence[Mailing]) -> list[Progress]:
    """Return the progress of mailings, in their order."""
    found = await connection.execute(SENT, {"mailings": [mailing.id for mailing in mailings]})
    sent = {row.mailing_id: row for row in found}
    return [_progress(mailing, sent[mailing.id]) for mailing in mailings if mailing.id in sent]


def _progress(mailing: Mailing, sent: Row[Any]) -> Progress:
    return Progress(
        mailing, _rate(sent), sent.first_sent_at, sent.last_sent_at, _wait(mailing, sent)
    )


def _wait(mailing: Mailing, sent: Row[Any]) -> Wait | None:
    if mailing.status != "running" or mailing.sending_messages or sent.due_at is None:
        return None
    if sent.due_at <= sent.now:
        return None
    return Wait(
        sent.due_at,
        sent.time_zone,
        is_retry=sent.due_at == sent.retry_at,  # due later, it waits for its window
        is_past_end=sent.due_at >= mailing.datetime_end,
    )


def _rate(sent: Row[Any]) -> float:
    if sent.first_sent_at is None:
        return 0.0
    passed = max(1.0, min(MINUTE, (sent.now - sent.first_sent_at).total_seconds()))
    return float(sent.lately / passed)
