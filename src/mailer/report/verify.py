"""Compares what is recorded with what is there: ledgers with messages, messages with their kin."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db.schema import MESSAGE_STATUSES
from mailer.report.snapshot import snapshot

CHUNK = 100
"""Mailings that one statement counts."""


class Difference(msgspec.Struct, frozen=True):
    """Something of a mailing that does not add up; its text is one line for a person."""

    mailing_id: int
    what: str
    recorded: int
    counted: int

    def __str__(self) -> str:
        return (
            f"mailing {self.mailing_id}: {self.what}:"
            f" {self.recorded} recorded, {self.counted} counted"
        )


async def differences(engine: AsyncEngine) -> list[Difference]:
    """Compare every mailing with its messages, all as they are at one moment.

    Nobody is kept waiting by it, and it holds no more in memory than a chunk of mailings and
    what it finds.
    """
    async with snapshot(engine) as connection:
        found = [
            difference
            async for mailing in _counted_mailings(connection)
            for difference in _compare(mailing)
        ]
        return [*found, *await _orphans(connection)]


# Deleted mailings too: until the last of their messages is gone the ledger follows them.
COUNTED = text("""
    WITH chunk AS (
        SELECT id FROM mailing WHERE id > :after ORDER BY id LIMIT :chunk
    ), counted AS (
        SELECT mailing_id, count(*) AS created,
            count(*) FILTER (WHERE status = 'scheduled') AS scheduled,
            count(*) FILTER (WHERE status = 'sending') AS sending,
            count(*) FILTER (WHERE status = 'delivered') AS delivered,
            count(*) FILTER (WHERE status = 'undelivered') AS undelivered,
            count(*) FILTER (WHERE status = 'unknown') AS "unknown",
            count(*) FILTER (WHERE status = 'cancelled') AS cancelled
        FROM message WHERE mailing_id IN (SELECT id FROM chunk) GROUP BY mailing_id
    )
    SELECT mailing.id, ledger.mailing_id IS NOT NULL AS has_ledger, mailing.clients_count,
        mailing.deleted_at IS NOT NULL AS is_deleted, audience_until IS NOT NULL AS has_begun,
        audience_cursor = audience_until AND NOT replanning AS is_taken,
        coalesce(created, 0) AS created,
        ledger.scheduled AS scheduled_recorded,
        coalesce(counted.scheduled, 0) AS scheduled_counted,
        ledger.sending AS sending_recorded,
        coalesce(counted.sending, 0) AS sending_counted,
        ledger.delivered AS delivered_recorded,
        coalesce(counted.delivered, 0) AS delivered_counted,
        ledger.undelivered AS undelivered_recorded,
        coalesce(counted.undelivered, 0) AS undelivered_counted,
        ledger."unknown" AS unknown_recorded,
        coalesce(counted."unknown", 0) AS unknown_counted,
        ledger.cancelled AS cancelled_recorded,
        coalesce(counted.cancelled, 0) AS cancelled_counted
    FROM chunk JOIN mailing USING (id) LEFT JOIN ledger ON ledger.mailing_id = mailing.id
        LEFT JOIN counted ON counted.mailing_id = mailing.id
    ORDER BY mailing.id""")


async def _counted_mailings(connection: AsyncConnection) -> AsyncIterator[Row[Any]]:
    """Yield every mailing with its ledger and its counted messages."""
    after = 0
    while rows := list(await connection.execute(COUNTED, {"after": after, "chunk": CHUNK})):
        for row in rows:
            yield row
        after = rows[-1].id


def _compare(row: Row[Any]) -> Iterator[Difference]:
    """Yield what does not add up in a mailing."""
    if not row.has_ledger:
        yield Difference(row.id, "ledgers", 0, 1)
        return
    for name in MESSAGE_STATUSES:
        recorded = getattr(row, f"{name}_recorded")
        counted = getattr(row, f"{name}_counted")
        if recorded != counted:
            yield Difference(row.id, f"{name} messages", recorded, counted)
    if not row.has_begun and row.created:
        yield Difference(row.id, "messages before the start", 0, row.created)
    # messages of a deleted mailing go in chunks
    if row.is_taken and not row.is_deleted and row.clients_count != row.created:
        yield Difference(row.id, "clients", row.clients_count, row.created)


ORPHANS = text("""
    SELECT mailing_id, 'messages without their mailing' AS what, count(*) AS messages
    FROM message WHERE NOT EXISTS (SELECT FROM mailing WHERE mailing.id = mailing_id)
    GROUP BY mailing_id
    UNION ALL
    SELECT mailing_id, 'messages without their client', count(*)
    FROM message WHERE NOT EXISTS (SELECT FROM client WHERE client.id = client_id)
    GROUP BY mailing_id
    ORDER BY mailing_id, what""")


async def _orphans(connection: AsyncConnection) -> list[Difference]:
    return [
        Difference(row.mailing_id, row.what, 0, row.messages)
        for row in await connection.execute(ORPHANS)
    ]
