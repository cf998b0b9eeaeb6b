"""Compares what is recorded with what is there: ledgers with messages, messages with their kin."""

import msgspec
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.report.snapshot import snapshot

CHUNK = 100
"""Mailings that one statement counts."""


class Difference(msgspec.Struct, frozen=True):
    """Something of a mailing that does not add up; its text is one line for a person."""

    mailing_id: int
    what: str
    found: int
    expected: int

    def __str__(self) -> str:
        return f"mailing {self.mailing_id}: {self.what}: {self.found}, expected {self.expected}"


# The end of the next chunk of mailings; null when there is none.
CHUNK_END = text("""
    SELECT max(id) FROM (
        SELECT id FROM mailing WHERE id > :after ORDER BY id LIMIT :chunk) AS chunk""")


async def differences(engine: AsyncEngine, chunk: int = CHUNK) -> list[Difference]:
    """Compare every mailing with its messages, all as they are at one moment.

    It keeps nobody waiting, and holds nothing but what it finds.
    """
    found: list[Difference] = []
    async with snapshot(engine) as connection:
        after = 0
        while True:
            bounds = {"after": after, "chunk": chunk}
            upper = (await connection.execute(CHUNK_END, bounds)).scalar_one()
            if upper is None:
                break
            found += await _fetch(connection, COMPARE, after=after, upper=upper)
            after = upper
        found += await _fetch(connection, ORPHANS)
    return found


async def _fetch(
    connection: AsyncConnection, statement: TextClause, **bounds: int
) -> list[Difference]:
    return [Difference(*row) for row in await connection.execute(statement, bounds)]


# Deleted mailings too: until the last of their messages is gone, the ledger follows them. Only
# their audience shrinks. What has no value to compare, such as a ledger that is missing, is null
# and drops out.
COMPARE = text("""
    WITH counted AS (
        SELECT mailing.id, mailing.clients_count, mailing.audience_until IS NOT NULL AS has_begun,
            mailing.audience_cursor = mailing.audience_until AND NOT mailing.replanning
                AND mailing.deleted_at IS NULL AS is_taken,
            count(message.id) AS created,
            count(*) FILTER (WHERE message.status = 'scheduled') AS scheduled,
            count(*) FILTER (WHERE message.status = 'sending') AS sending,
            count(*) FILTER (WHERE message.status = 'delivered') AS delivered,
            count(*) FILTER (WHERE message.status = 'undelivered') AS undelivered,
            count(*) FILTER (WHERE message.status = 'unknown') AS "unknown",
            count(*) FILTER (WHERE message.status = 'cancelled') AS cancelled
        FROM mailing LEFT JOIN message ON message.mailing_id = mailing.id
        WHERE mailing.id > :after AND mailing.id <= :upper
        GROUP BY mailing.id
    )
    SELECT counted.id, compared.what, compared.found, compared.expected
    FROM counted LEFT JOIN ledger ON ledger.mailing_id = counted.id CROSS JOIN LATERAL (VALUES
        ('ledgers', (ledger.mailing_id IS NOT NULL)::int, 1),
        ('scheduled in the ledger', ledger.scheduled, counted.scheduled),
        ('sending in the ledger', ledger.sending, counted.sending),
        ('delivered in the ledger', ledger.delivered, counted.delivered),
        ('undelivered in the ledger', ledger.undelivered, counted.undelivered),
        ('unknown in the ledger', ledger."unknown", counted."unknown"),
        ('cancelled in the ledger', ledger.cancelled, counted.cancelled),
        ('messages before the start', CASE WHEN NOT has_begun THEN created END, 0),
        ('clients_count', CASE WHEN is_taken THEN clients_count END, created)
    ) AS compared (what, found, expected)
    WHERE compared.found <> compared.expected
    ORDER BY counted.id""")

ORPHANS = text("""
    SELECT mailing_id, 'messages without their mailing' AS what, count(*) AS found, 0 AS expected
    FROM message WHERE NOT EXISTS (SELECT FROM mailing WHERE mailing.id = mailing_id)
    GROUP BY mailing_id
    UNION ALL
    SELECT mailing_id, 'messages without their client', count(*), 0
    FROM message WHERE NOT EXISTS (SELECT FROM client WHERE client.id = client_id)
    GROUP BY mailing_id
    ORDER BY mailing_id, what""")
