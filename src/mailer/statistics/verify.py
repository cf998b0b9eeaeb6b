"""Compare stored counts with the rows that they count, for the command `mailer verify`.

Each statement below returns rows of four columns: the mailing or null, the name of the count, the
stored count, and the actual count. It returns only counts that differ.
"""

import msgspec
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db.engine import snapshot
from mailer.db.sql import add_up, count_by_status, one_of, sums, values_of
from mailer.db.tables.message import COUNTERS
from mailer.message.counters import GLOBAL_COUNTS
from mailer.statuses import MESSAGE_STATUSES, OPEN, OUTCOMES

MAILINGS_BATCH = 100
"""Mailings whose messages one statement counts."""


class Difference(msgspec.Struct, frozen=True):
    """A stored count that differs from the actual count; `str()` is one line for users."""

    mailing_id: int | None
    """None for counts over all mailings."""
    quantity: str
    """The name of the count, for example `count of delivered messages`."""
    found: int
    """The stored count."""
    expected: int
    """The actual count."""

    def __str__(self) -> str:
        scope = "all" if self.mailing_id is None else f"mailing {self.mailing_id}"
        return f"{scope}: {self.quantity}: {self.found}, expected {self.expected}"


# The largest id of the next chunk of mailings after `:after`; null when no mailing is left.
CHUNK_END = text("""
    SELECT max(id) FROM (
        SELECT id FROM mailing WHERE id > :after ORDER BY id LIMIT :chunk) AS chunk""")


async def find_differences(engine: AsyncEngine, chunk: int = MAILINGS_BATCH) -> list[Difference]:
    """Return the differences between all stored counts and the rows, in one snapshot.

    A statement counts the messages of `chunk` mailings at most. No locks delay other statements,
    and only the differences are in memory.
    """
    differences: list[Difference] = []
    async with snapshot(engine) as connection:
        after = 0
        while True:
            values = {"after": after, "chunk": chunk}
            upper = (await connection.execute(CHUNK_END, values)).scalar_one()
            if upper is None:
                break
            for comparison in (COMPARE_COUNTS, COMPARE_COUNTERS):
                differences += await _fetch(connection, comparison, after=after, upper=upper)
            after = upper
        for comparison in (
            *(DANGLING_MESSAGES, COMPARE_SETTLED, COMPARE_OUTCOMES, COMPARE_GATEWAYS),
            *(COMPARE_DELIVERIES, COMPARE_SEGMENTS, COMPARE_FIELDS, COMPARE_OPT_OUTS),
        ):
            differences += await _fetch(connection, comparison)
    return differences


async def _fetch(
    connection: AsyncConnection, statement: TextClause, **bounds: int
) -> list[Difference]:
    return [Difference(*row) for row in await connection.execute(statement, bounds)]


# Templates such as this one are for `values_of`, which makes a row for each status: the name of the
# count, the stored count, the actual count. `{name!r}` is the status as an SQL string.
COUNT_OF_MAILING = "'count of ' || {name!r} || ' messages', mailing_counts.{name}, counted.{name}"
# Counts of mailings in `mailing_counts` and `mailing.clients_count`, against the messages.
# Excludes deleted mailings and those past their retention, because their messages are deleted in
# chunks. A comparison with null is never true, so it returns no row. `found` is null for a mailing
# without a row of counts, and where the rule does not apply.
COMPARE_COUNTS = text(f"""
    WITH counted AS (
        SELECT mailing.id, mailing.clients_count, mailing.audience_until IS NOT NULL AS is_started,
            mailing.audience_cursor = mailing.audience_until AND NOT mailing.is_replanning
                AS is_enqueued,
            count(message.id) AS created,
            {count_by_status(MESSAGE_STATUSES, "message.status")}
        FROM mailing LEFT JOIN message ON message.mailing_id = mailing.id
        WHERE mailing.id > :after AND mailing.id <= :upper
            AND mailing.deleted_at IS NULL AND mailing.purge_started_at IS NULL
        GROUP BY mailing.id
    )
    SELECT counted.id, compared.quantity, compared.found, compared.expected
    FROM counted LEFT JOIN mailing_counts ON mailing_counts.mailing_id = counted.id
    CROSS JOIN LATERAL (VALUES
        ('rows of counts', (mailing_counts.mailing_id IS NOT NULL)::int, 1),
        {values_of(MESSAGE_STATUSES, COUNT_OF_MAILING)},
        ('messages before the start', CASE WHEN NOT is_started THEN created END, 0),
        ('clients_count', CASE WHEN is_enqueued THEN clients_count END, created)
    ) AS compared (quantity, found, expected)
    WHERE compared.found <> compared.expected
    ORDER BY counted.id""")  # noqa: S608  # no user input

COUNT_OF_KEY = "{name!r}, stored.{name}, counted.{name}"
# Counters in `message_count` and its deltas (`stored`), against the messages (`counted`), by
# dimension and key. Outcomes by second are downsampled over time, so only their sum is compared,
# under the key `any`.
COMPARE_COUNTERS = text(f"""
    WITH compared AS (
        SELECT id FROM mailing WHERE id > :after AND id <= :upper
            AND deleted_at IS NULL AND purge_started_at IS NULL
    ), counted_message AS (
        SELECT mailing_id, operator_code, time_zone, reason, attempts, gateway, text_version, parts,
            status,
            CASE WHEN NOT {one_of("status", OPEN)}
                THEN floor(extract(epoch FROM coalesce(sent_at, updated_at)))::bigint END AS second
        FROM message JOIN compared ON compared.id = mailing_id
    ), counted AS (
        SELECT mailing_id, dimension, key, count(*) AS messages,
            {count_by_status(OUTCOMES)},
            coalesce(sum(parts) FILTER (WHERE second IS NOT NULL), 0)::bigint AS parts
        FROM counted_message CROSS JOIN LATERAL (VALUES
            ('operator_code', operator_code), ('time_zone', time_zone), ('reason', reason),
            ('attempts', CASE WHEN second IS NOT NULL THEN attempts::text END),
            ('gateway', CASE WHEN second IS NOT NULL THEN gateway END),
            ('text_version', CASE WHEN second IS NOT NULL THEN text_version::text END),
            ('second', CASE WHEN second IS NOT NULL THEN 'any' END)) AS keys (dimension, key)
        WHERE key IS NOT NULL
        GROUP BY mailing_id, dimension, key
    ), stored AS (
        SELECT mailing_id, dimension, CASE dimension WHEN 'second' THEN 'any' ELSE key END AS key,
            {sums(COUNTERS)}
        FROM all_message_counts JOIN compared ON compared.id = mailing_id
        GROUP BY 1, 2, 3
    )
    SELECT mailing_id, format('count of %s messages with %s %s', quantity, dimension, key), found,
        expected
    FROM stored FULL JOIN counted USING (mailing_id, dimension, key) CROSS JOIN LATERAL (VALUES
        ('all', stored.messages, counted.messages),
        ('parts of', stored.parts, counted.parts),
        {values_of(OUTCOMES, COUNT_OF_KEY)}
    ) AS pair (quantity, stored_count, actual_count), LATERAL (
        SELECT coalesce(stored_count, 0)::bigint AS found, coalesce(actual_count, 0) AS expected
    ) AS compared
    WHERE found <> expected ORDER BY mailing_id, dimension, key, quantity""")  # noqa: S608  # likewise

# Messages have no foreign keys (docs/decisions/0003).
DANGLING_MESSAGES = text("""
    SELECT mailing_id, 'messages without their mailing' AS quantity,
        count(*) AS found, 0 AS expected
    FROM message WHERE NOT EXISTS (SELECT FROM mailing WHERE mailing.id = mailing_id)
    GROUP BY mailing_id
    UNION ALL
    SELECT mailing_id, 'messages without their client', count(*), 0
    FROM message WHERE NOT EXISTS (SELECT FROM client WHERE client.id = client_id)
    GROUP BY mailing_id
    ORDER BY mailing_id, quantity""")

# The numbers of settled mailings in `settled_totals`, against the mailings.
COMPARE_SETTLED = text("""
    SELECT NULL, 'count of ' || compared.quantity, compared.found, compared.expected
    FROM settled_totals, (
        SELECT count(*) FILTER (WHERE status = 'finished') AS finished,
            count(*) FILTER (WHERE status = 'cancelled') AS cancelled_mailings
        FROM mailing WHERE is_settled AND deleted_at IS NULL
    ) AS counted, LATERAL (VALUES
        ('finished mailings', settled_totals.finished, counted.finished),
        ('cancelled mailings', settled_totals.cancelled_mailings, counted.cancelled_mailings)
    ) AS compared (quantity, found, expected)
    WHERE compared.found <> compared.expected""")

TOTAL_OF_OUTCOME = "{name!r}, all_days.{name}, settled_totals.{name} + unsettled.{name}"
# The outcomes of all days (`outcome_count` and its deltas), against the counts of mailings. Of
# settled and deleted mailings these are only in `settled_totals`.
COMPARE_OUTCOMES = text(f"""
    SELECT NULL, format('sum of %s messages over all days', compared.quantity), compared.found,
        compared.expected
    FROM settled_totals, (
        SELECT {sums(OUTCOMES)} FROM all_outcome_counts
    ) AS all_days, (
        SELECT {sums(OUTCOMES)}
        FROM mailing JOIN mailing_counts ON mailing_id = id WHERE NOT is_settled
    ) AS unsettled, LATERAL (VALUES
        {values_of(OUTCOMES, TOTAL_OF_OUTCOME)}
    ) AS compared (quantity, found, expected)
    WHERE compared.found <> compared.expected""")  # noqa: S608  # no user input

COUNT_OF_GATEWAY = "{name!r}, all_days.{name}, counted.{name}"
# The outcomes and parts of all days by gateway (`outcome_count` and its deltas), against the
# counters of mailings. Those of a deleted mailing are deleted, so after that (`is_complete` is
# false) only the least possible count is known. Messages without a gateway were never tried.
COMPARE_GATEWAYS = text(f"""
    WITH all_days AS (
        SELECT gateway, {sums(GLOBAL_COUNTS)}
        FROM all_outcome_counts WHERE gateway <> '' GROUP BY gateway
    ), counted AS (
        SELECT key AS gateway, {sums(GLOBAL_COUNTS)}
        FROM all_message_counts WHERE dimension = 'gateway' GROUP BY key
    ), total AS (
        SELECT (SELECT sum({add_up(OUTCOMES)}) FROM all_outcome_counts)
            = (SELECT sum({add_up(OUTCOMES)}) FROM mailing_counts) AS is_complete
    )
    SELECT NULL, format('sum of %s messages through %s over all days', quantity, gateway),
        found, expected
    FROM total, all_days FULL JOIN counted USING (gateway) CROSS JOIN LATERAL (VALUES
        ('parts of', all_days.parts, counted.parts),
        {values_of(OUTCOMES, COUNT_OF_GATEWAY)}
    ) AS pair (quantity, stored_count, actual_count), LATERAL (
        SELECT coalesce(stored_count, 0)::bigint AS found, CASE WHEN is_complete
            THEN coalesce(actual_count, 0) ELSE greatest(stored_count, actual_count)
            END::bigint AS expected
    ) AS compared
    WHERE found <> expected ORDER BY gateway, quantity""")  # noqa: S608  # likewise

# The messages accepted in the last days by gateway, of all operator codes (`delivery_count` and its
# deltas), against the outcomes. The first hour is left out: while mailer is updated, processes of a
# version without these counts may merge deltas.
COMPARE_DELIVERIES = text(f"""
    WITH first_bucket AS (
        SELECT greatest(min(bucket_start) + interval '1 hour', now() - interval '7 days') AS at
        FROM delivery_count HAVING count(*) > 0
    ), stored AS (
        SELECT gateway, {sums(("sent", "no_receipt", "delivered"))}
        FROM all_delivery_counts JOIN first_bucket ON bucket_start >= at GROUP BY gateway
    ), outcomes AS (
        SELECT gateway, {sums(("sent", "delivered"))},
            coalesce(sum(sent) FILTER (WHERE reason <> ''), 0)::bigint AS no_receipt
        FROM all_outcome_counts JOIN first_bucket ON bucket_start >= at GROUP BY gateway
    )
    SELECT NULL, format('sum of %s messages through %s by operator code', quantity, gateway),
        found, expected
    FROM stored FULL JOIN outcomes USING (gateway) CROSS JOIN LATERAL (VALUES
        ('sent', stored.sent, outcomes.sent),
        ('sent, without a receipt in time,', stored.no_receipt, outcomes.no_receipt),
        ('delivered', stored.delivered, outcomes.delivered)
    ) AS pair (quantity, stored_count, actual_count), LATERAL (
        SELECT coalesce(stored_count, 0) AS found, coalesce(actual_count, 0) AS expected
    ) AS compared
    WHERE found <> expected ORDER BY gateway, quantity""")  # noqa: S608  # likewise

# The counts of clients by segment, against the clients. Returns only the number of wrong segments
# and not their names, because tags may be confidential.
COMPARE_SEGMENTS = text("""
    SELECT NULL, 'client segments with a wrong count', count(*), 0
    FROM (
        SELECT operator_code, tag, time_zone, sum(clients) AS clients, sum(opted_out) AS opted_out
        FROM all_segment_counts
        GROUP BY operator_code, tag, time_zone
    ) AS stored FULL JOIN (
        SELECT operator_code, tag, time_zone, count(*) AS clients,
            count(opted_out_at) AS opted_out
        FROM client WHERE deleted_at IS NULL GROUP BY operator_code, tag, time_zone
    ) AS counted ON stored.operator_code = counted.operator_code
        AND stored.time_zone = counted.time_zone
        AND coalesce(stored.tag, '') = coalesce(counted.tag, '')
    WHERE coalesce(stored.clients, 0) <> coalesce(counted.clients, 0)
        OR coalesce(stored.opted_out, 0) <> coalesce(counted.opted_out, 0)
    HAVING count(*) > 0""")

# The counts of clients by field, against the clients.
COMPARE_FIELDS = text("""
    SELECT NULL, format('count of clients with the field %s', name), found, expected
    FROM (
        SELECT name, sum(clients) AS clients FROM all_client_field_counts GROUP BY name
    ) AS stored FULL JOIN (
        SELECT name, count(*) AS clients FROM client CROSS JOIN jsonb_object_keys(fields) AS name
        GROUP BY name
    ) AS counted USING (name) CROSS JOIN LATERAL (
        SELECT coalesce(stored.clients, 0)::bigint AS found,
            coalesce(counted.clients, 0) AS expected
    ) AS compared
    WHERE found <> expected ORDER BY name""")

# The number of opt-outs, and the opt-outs of clients, against the rows.
COMPARE_OPT_OUTS = text("""
    SELECT NULL, compared.quantity, compared.found, compared.expected
    FROM (VALUES
        ('count of opt-outs', (SELECT coalesce(sum(opt_outs), 0)::bigint FROM opt_out_count),
            (SELECT count(*) FROM opt_out)),
        ('clients without the time of their opt-out', (
            SELECT count(*) FROM opt_out FULL JOIN client ON client.id = client_id
            WHERE (client_id IS NOT NULL OR client.opted_out_at IS NOT NULL)
                AND client.opted_out_at IS DISTINCT FROM opt_out.opted_out_at), 0)
    ) AS compared (quantity, found, expected)
    WHERE compared.found <> compared.expected""")
