"""How far mailings under way are: at which rate they go out, and when nothing will be left."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import ARRAY, BigInteger, Row, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.schema import OUTCOMES
from mailer.mailing.model import Mailing

MINUTE = 60


class Progress(msgspec.Struct, frozen=True):
    """A mailing and how it goes on."""

    mailing: Mailing
    rate: float
    """Messages sent a second over the last minute, or since the first was sent."""
    first_sent_at: datetime | None
    last_sent_at: datetime | None
    expected_end: datetime | None
    """When nothing will be left to send, at this rate and by what is due; None if unknown."""


# The keys are seconds of ten digits: they are in the order of time.
SENT = text("""
    SELECT mailing_id, first_sent_at, last_sent_at, now() AS now,
        (SELECT max(due_at) FROM message
            WHERE mailing_id = ledger.mailing_id AND status = 'scheduled') AS last_due_at,
        (SELECT coalesce(sum(delivered + "unknown"), 0) FROM (
            SELECT * FROM tally WHERE mailing_id = ledger.mailing_id AND dimension = 'second'
                AND key > trunc(extract(epoch FROM now()) - 60)::text
            UNION ALL SELECT * FROM tally_move
            WHERE mailing_id = ledger.mailing_id AND dimension = 'second'
                AND key > trunc(extract(epoch FROM now()) - 60)::text) AS moved)::bigint AS lately
    FROM ledger WHERE mailing_id = ANY (:mailings)""").bindparams(
    bindparam("mailings", type_=ARRAY(BigInteger))
)


async def of_mailings(connection: AsyncConnection, mailings: Sequence[Mailing]) -> list[Progress]:
    """Return the progress of mailings, in their order."""
    found = await connection.execute(SENT, {"mailings": [mailing.id for mailing in mailings]})
    sent = {row.mailing_id: row for row in found}
    return [_progress(mailing, sent[mailing.id]) for mailing in mailings if mailing.id in sent]


def _progress(mailing: Mailing, sent: Row[Any]) -> Progress:
    rate = _rate(sent)
    expected_end = _expected_end(mailing, sent, rate)
    return Progress(mailing, rate, sent.first_sent_at, sent.last_sent_at, expected_end)


def _rate(sent: Row[Any]) -> float:
    if sent.first_sent_at is None:
        return 0.0
    passed = max(1.0, min(MINUTE, (sent.now - sent.first_sent_at).total_seconds()))
    return float(sent.lately / passed)


def _expected_end(mailing: Mailing, sent: Row[Any], rate: float) -> datetime | None:
    """Return when nothing will be left to send; what is left at the mailing's end is given up."""
    ended = sum(getattr(mailing, f"{outcome}_messages") for outcome in OUTCOMES)
    left = mailing.clients_count - ended  # also those whose messages are still to be made
    if mailing.status != "running" or left <= 0 or not rate:
        return None
    now: datetime = sent.now
    last_due_at: datetime = sent.last_due_at or now
    return min(max(now + timedelta(seconds=left / rate), last_due_at), mailing.datetime_end)
