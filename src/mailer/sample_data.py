"""Sample clients, mailings and messages, for the demo, the tests and the benchmarks.

They are written into the database directly, past the rules of the API; triggers keep the counts.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any

import asyncpg
import msgspec

from mailer.db.sql import one_of
from mailer.statuses import SENT

TEXT = "Your order is ready. Come by until nine."
ALL_OPERATOR_CODES = tuple(f"9{number:02}" for number in range(100))
"""The codes 900 to 999, the range of mobile phones."""
SampleResult = tuple[str, str | None]
"""Status and reason of a message."""
SCHEDULED: SampleResult = "scheduled", None

# Inserts $1 clients, with the operator codes $2, tags $3 and time zones $4 in turn; returns their
# ids. The phone is 7, the code, and the client's number in the directory, which makes it unique.
INSERT_CLIENTS = """
    INSERT INTO client (phone, operator_code, tag, time_zone)
    SELECT '7' || code || lpad(n::text, 7, '0'), code, ($3::text[])[1 + n % cardinality($3)],
        ($4::text[])[1 + n % cardinality($4)]
    FROM (SELECT count(*) AS existing FROM client) AS directory
    CROSS JOIN LATERAL generate_series(existing + 1, existing + $1::bigint) AS n
    CROSS JOIN LATERAL (SELECT ($2::text[])[1 + n % cardinality($2)] AS code) AS drawn
    ORDER BY n RETURNING id"""
# Gives the clients $1 the fields $2 in turn.
SET_FIELDS = """
    UPDATE client SET fields = ($2::text[])[1 + position % cardinality($2)]::jsonb
    FROM unnest($1::bigint[]) WITH ORDINALITY AS given (id, position) WHERE client.id = given.id"""
ENQUEUED_UNTIL = 10_000_000
"""An id above those of all sample clients: up to here, all clients of the audience are enqueued."""
# Inserts one mailing for each element of the arrays $1 to $8, with its row of counts; returns their
# ids. A mailing that is neither scheduled nor a draft has a snapshot of its audience, and a cursor
# at its end ($9).
INSERT_MAILINGS = """
    WITH created AS (
        INSERT INTO mailing (datetime_start, datetime_end, status, clients_count, text,
            client_filter, send_interval_time_start, send_interval_time_end,
            audience_until, audience_cursor, audience_snapshot, is_closed)
        SELECT starts, ends, status, clients, text, client_filter::jsonb, opens, closes,
            CASE WHEN is_started THEN $9::bigint END,
            CASE WHEN is_started THEN $9::bigint ELSE 0 END,
            CASE WHEN is_started THEN pg_current_snapshot()::text END, status = 'draft'
        FROM unnest($1::timestamptz[], $2::timestamptz[], $3::text[], $4::bigint[], $5::text[],
            $6::text[], $7::time[], $8::time[]) WITH ORDINALITY
            AS given (starts, ends, status, clients, text, client_filter, opens, closes, position)
        CROSS JOIN LATERAL (SELECT status NOT IN ('draft', 'scheduled') AS is_started) AS derived
        ORDER BY position RETURNING id
    )
    INSERT INTO mailing_counts (mailing_id) SELECT id FROM created RETURNING mailing_id AS id"""
# Says that the mailings have ended, and that none of their messages will change.
SETTLE_MAILINGS = """
    UPDATE mailing SET is_closed = true, is_settled = true, created_at = datetime_start,
        updated_at = datetime_end WHERE id = ANY($1)"""
# Inserts a message of mailing $1 for each client of $2. It has a status of $3, and the reason at
# the same place in $4. `lot` is that place: the message's position times a prime, so that the
# results are used equally often, but in no order that one can see. The message is due at $5, and
# gets its result at `at`, within the interval $6 after $5: the power makes most come early. A
# message was also sent if its reason is that of a receipt, as `not_delivered`.
INSERT_SAMPLE_MESSAGES = f"""
    INSERT INTO message (mailing_id, client_id, operator_code, time_zone, due_at, created_at,
        sent_at, updated_at, attempts, status, reason)
    SELECT $1, given.id, coalesce(operator_code, '916'), coalesce(time_zone, 'UTC'), $5,
        least($5, now()),
        CASE WHEN {one_of("status", SENT)} OR reason ~ '^(not_delivered|validity_expired)'
            THEN at END, at,
        CASE WHEN status IN ('scheduled', 'cancelled') THEN 0 ELSE 1 END, status, reason
    FROM unnest($2::bigint[]) WITH ORDINALITY AS given (id, position)
    LEFT JOIN client ON client.id = given.id
    CROSS JOIN LATERAL (
        SELECT 1 + position * 7919 % cardinality($3::text[]) AS lot,
            $5::timestamptz + $6::interval * power(position::float8 / cardinality($2), 1.6) AS at
    ) AS drawn
    CROSS JOIN LATERAL (
        SELECT ($3::text[])[lot] AS status, ($4::text[])[lot] AS reason) AS result
    ORDER BY position"""  # noqa: S608  # no user input


class SampleMailing(msgspec.Struct, frozen=True, kw_only=True):
    """A mailing to create. Unless it is scheduled or a draft, its audience is enqueued."""

    start: datetime
    lasts: timedelta = timedelta(hours=6)
    status: str = "running"
    clients: int = 0
    """Size of the audience."""
    text: str = TEXT
    client_filter: object = None
    """As in a request to the API: a text, or an object of lists; None: all clients."""
    opens: time | None = None
    closes: time | None = None
    """The sending window, in the local time of each client."""


async def create_clients(
    database: asyncpg.Connection,
    count: int,
    *,
    operator_codes: Sequence[str] = ("916",),
    tags: Sequence[str | None] = (None,),
    time_zones: Sequence[str] = ("UTC",),
) -> list[int]:
    """Create clients and return their ids.

    Each gets one of the codes, tags and time zones, in turn.
    """
    rows = await database.fetch(INSERT_CLIENTS, count, operator_codes, tags, time_zones)
    return [row["id"] for row in rows]


async def set_fields(
    database: asyncpg.Connection, clients: Sequence[int], *fields: Mapping[str, str]
) -> None:
    """Give each client one of these objects of fields, in turn."""
    objects = [msgspec.json.encode(each).decode() for each in fields]
    await database.execute(SET_FIELDS, clients, objects)


async def create_mailings(database: asyncpg.Connection, *mailings: SampleMailing) -> list[int]:
    """Create mailings without messages, and return their ids."""
    values_of_mailings = [
        (
            mailing.start,
            mailing.start + mailing.lasts,
            mailing.status,
            mailing.clients,
            mailing.text,
            msgspec.json.encode(mailing.client_filter).decode() if mailing.client_filter else None,
            mailing.opens,
            mailing.closes,
        )
        for mailing in mailings
    ]
    columns = zip(*values_of_mailings, strict=True)
    rows = await database.fetch(INSERT_MAILINGS, *columns, ENQUEUED_UNTIL)
    return sorted(row["id"] for row in rows)


async def settle_mailings(database: asyncpg.Connection, ids: Sequence[int]) -> None:
    """Mark ended mailings as settled at their end, once their messages exist."""
    await database.execute(SETTLE_MAILINGS, ids)


async def create_messages(
    database: asyncpg.Connection,
    mailing_id: int,
    clients: Sequence[int],
    *results: SampleResult,
    at: datetime,
    spread: timedelta = timedelta(),
) -> None:
    """Create one message of a mailing for each client; they get the results in turn.

    The messages are due at `at` and get their results within `spread` after it: most of them soon,
    and fewer and fewer later. Messages to clients that do not exist get operator code 916 and UTC.
    """
    statuses, reasons = zip(*results, strict=True)
    await database.execute(
        INSERT_SAMPLE_MESSAGES, mailing_id, clients, statuses, reasons, at, spread
    )


def new_mailing(*, starts_in: float = 0, lasts: float = 3600, **fields: object) -> dict[str, Any]:
    """Return the JSON of a mailing that starts in `starts_in` seconds and lasts `lasts` seconds.

    `fields` replace or extend the fields of the JSON.
    """
    start = datetime.now(UTC) + timedelta(seconds=starts_in)  # noqa: TID251  # the API's caller has its own clock
    return {
        "datetime_start": start.isoformat(),
        "datetime_end": (start + timedelta(seconds=lasts)).isoformat(),
        "text": TEXT,
    } | fields
