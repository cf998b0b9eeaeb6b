"""Compares what is recorded with what is there: ledgers with messages, messages with their kin."""

import msgspec
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db.schema import OUTCOMES
from mailer.message.outcomes import COUNTED
from mailer.report.snapshot import snapshot

COALESCED = ", ".join(f'coalesce(sum("{name}"), 0)::bigint AS "{name}"' for name in OUTCOMES)
CHUNK = 100
"""Mailings that one statement counts."""


class Difference(msgspec.Struct, frozen=True):
    """Something of a mailing that does not add up; its text is one line for a person."""

    mailing_id: int | None
    """None for what is counted over all."""
    what: str
    found: int
    expected: int

    def __str__(self) -> str:
        of = "all" if self.mailing_id is None else f"mailing {self.mailing_id}"
        return f"{of}: {self.what}: {self.found}, expected {self.expected}"


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
            found += await _fetch(connection, COMPARE_TALLIES, after=after, upper=upper)
            after = upper
        found += await _fetch(connection, ORPHANS)
        found += await _fetch(connection, COMPARE_SETTLED)
        found += await _fetch(connection, COMPARE_OUTCOMES)
        found += await _fetch(connection, COMPARE_DIRECTORY)
    return found


async def _fetch(
    connection: AsyncConnection, statement: TextClause, **bounds: int
) -> list[Difference]:
    return [Difference(*row) for row in await connection.execute(statement, bounds)]


# Not mailings that are deleted, or whose messages are: nobody counts what goes. What has no value
# to compare, such as a ledger that is missing, is null and drops out.
COMPARE = text("""
    WITH counted AS (
        SELECT mailing.id, mailing.clients_count, mailing.audience_until IS NOT NULL AS has_begun,
            mailing.audience_cursor = mailing.audience_until AND NOT mailing.replanning AS is_taken,
            count(message.id) AS created,
            count(*) FILTER (WHERE message.status = 'scheduled') AS scheduled,
            count(*) FILTER (WHERE message.status = 'sending') AS sending,
            count(*) FILTER (WHERE message.status = 'delivered') AS delivered,
            count(*) FILTER (WHERE message.status = 'undelivered') AS undelivered,
            count(*) FILTER (WHERE message.status = 'unknown') AS "unknown",
            count(*) FILTER (WHERE message.status = 'cancelled') AS cancelled
        FROM mailing LEFT JOIN message ON message.mailing_id = mailing.id
        WHERE mailing.id > :after AND mailing.id <= :upper
            AND mailing.deleted_at IS NULL AND mailing.retired_at IS NULL
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

# When outcomes were is counted more coarsely the longer ago they were: those are compared in all.
COMPARE_TALLIES = text("""
    WITH compared AS (
        SELECT id FROM mailing WHERE id > :after AND id <= :upper
            AND deleted_at IS NULL AND retired_at IS NULL
    ), each AS (
        SELECT mailing_id, operator_code, time_zone, reason, attempts, status,
            CASE WHEN status NOT IN ('scheduled', 'sending')
                THEN floor(extract(epoch FROM coalesce(sent_at, updated_at)))::bigint END AS second
        FROM message JOIN compared ON compared.id = mailing_id
    ), counted AS (
        SELECT mailing_id, dimension, key, count(*) AS messages,
            count(*) FILTER (WHERE status = 'delivered') AS delivered,
            count(*) FILTER (WHERE status = 'undelivered') AS undelivered,
            count(*) FILTER (WHERE status = 'unknown') AS "unknown",
            count(*) FILTER (WHERE status = 'cancelled') AS cancelled
        FROM each CROSS JOIN LATERAL (VALUES
            ('operator_code', operator_code), ('time_zone', time_zone), ('reason', reason),
            ('attempts', CASE WHEN second IS NOT NULL THEN attempts::text END),
            ('second', CASE WHEN second IS NOT NULL THEN 'any' END)) AS told (dimension, key)
        WHERE key IS NOT NULL
        GROUP BY mailing_id, dimension, key
    ), tallied AS (
        SELECT mailing_id, dimension, CASE dimension WHEN 'second' THEN 'any' ELSE key END AS key,
            sum(messages) AS messages, sum(delivered) AS delivered,
            sum(undelivered) AS undelivered, sum("unknown") AS "unknown",
            sum(cancelled) AS cancelled
        FROM (SELECT * FROM tally UNION ALL SELECT * FROM tally_move) AS moved
            JOIN compared ON compared.id = mailing_id
        WHERE dimension <> 'outcome'
        GROUP BY 1, 2, 3
    )
    SELECT mailing_id, format('%s of %s %s in the tally', what, dimension, key), found, expected
    FROM tallied FULL JOIN counted USING (mailing_id, dimension, key) CROSS JOIN LATERAL (VALUES
        ('messages', tallied.messages, counted.messages),
        ('delivered', tallied.delivered, counted.delivered),
        ('undelivered', tallied.undelivered, counted.undelivered),
        ('unknown', tallied."unknown", counted."unknown"),
        ('cancelled', tallied.cancelled, counted.cancelled)
    ) AS pair (what, told, held), LATERAL (
        SELECT coalesce(told, 0)::bigint AS found, coalesce(held, 0) AS expected) AS compared
    WHERE found <> expected ORDER BY mailing_id, dimension, key, what""")

ORPHANS = text("""
    SELECT mailing_id, 'messages without their mailing' AS what, count(*) AS found, 0 AS expected
    FROM message WHERE NOT EXISTS (SELECT FROM mailing WHERE mailing.id = mailing_id)
    GROUP BY mailing_id
    UNION ALL
    SELECT mailing_id, 'messages without their client', count(*), 0
    FROM message WHERE NOT EXISTS (SELECT FROM client WHERE client.id = client_id)
    GROUP BY mailing_id
    ORDER BY mailing_id, what""")

COMPARE_SETTLED = text("""
    SELECT NULL, compared.what || ' in what is settled', compared.found, compared.expected
    FROM settled, (
        SELECT count(*) FILTER (WHERE status = 'finished') AS finished,
            count(*) FILTER (WHERE status = 'cancelled') AS cancelled_mailings
        FROM mailing WHERE is_settled AND deleted_at IS NULL
    ) AS counted, LATERAL (VALUES
        ('finished mailings', settled.finished, counted.finished),
        ('cancelled mailings', settled.cancelled_mailings, counted.cancelled_mailings)
    ) AS compared (what, found, expected)
    WHERE compared.found <> compared.expected""")

# Deleted mailings leave only totals: compare the totals of all days with them.
COMPARE_OUTCOMES = text(f"""
    SELECT NULL, compared.what || ' on all days', compared.found, compared.expected
    FROM settled, (
        SELECT {COALESCED} FROM {COUNTED}
    ) AS told, (
        SELECT {COALESCED} FROM mailing JOIN ledger ON mailing_id = id WHERE NOT is_settled
    ) AS live, LATERAL (VALUES
        ('delivered', told.delivered, settled.delivered + live.delivered),
        ('undelivered', told.undelivered, settled.undelivered + live.undelivered),
        ('unknown', told."unknown", settled."unknown" + live."unknown"),
        ('cancelled', told.cancelled, settled.cancelled + live.cancelled)
    ) AS compared (what, found, expected)
    WHERE compared.found <> compared.expected""")  # noqa: S608  # our own columns

# Without saying of which kind: a tag is the owner's own word.
COMPARE_DIRECTORY = text("""
    SELECT NULL, 'kinds of clients that are miscounted', count(*), 0
    FROM (
        SELECT operator_code, tag, time_zone, sum(clients) AS clients
        FROM (SELECT * FROM directory UNION ALL SELECT * FROM directory_move) AS moved
        GROUP BY operator_code, tag, time_zone
    ) AS told FULL JOIN (
        SELECT operator_code, tag, time_zone, count(*) AS clients
        FROM client WHERE deleted_at IS NULL GROUP BY operator_code, tag, time_zone
    ) AS counted ON told.operator_code = counted.operator_code
        AND told.time_zone = counted.time_zone
        AND coalesce(told.tag, '') = coalesce(counted.tag, '')
    WHERE coalesce(told.clients, 0) <> coalesce(counted.clients, 0) HAVING count(*) > 0""")
