"""The limit of fields of a client, when an import adds some to those that the client has."""

from collections.abc import Sequence

import asyncpg

from mailer.client.fields import MAX_CLIENT_FIELDS, TOO_MANY_FIELDS
from mailer.client.rows import MAX_REPORTED_LINES, RejectedField

# Whether the clients and the file together have so many names that a client may get too many.
# Hardly any directory has, so that hardly any import reads the clients for it.
MAY_EXCEED_LIMIT = f"""
    SELECT count(*) > {MAX_CLIENT_FIELDS} FROM (
        SELECT unnest($1::text[]) UNION SELECT name FROM all_client_field_counts
        LIMIT {MAX_CLIENT_FIELDS + 1}) AS name"""  # noqa: S608  # no user input
# $1: the names that the file has columns for.
DELETE_LINES_OVER_LIMIT = f"""
    DELETE FROM client_import AS staged USING client
    WHERE client.phone = staged.phone AND (
        SELECT count(*) FROM jsonb_object_keys((client.fields - $1::text[]) || staged.fields)
    ) > {MAX_CLIENT_FIELDS}
    RETURNING line"""  # noqa: S608  # no user input


async def delete_lines_over_limit(
    database: asyncpg.Connection,
    field_names: Sequence[str],
    *,
    timeout: float,  # noqa: ASYNC109  # of the statement
) -> list[int]:
    """Delete staged lines that would give a client too many fields; return their numbers.

    `field_names` are those that the file has columns for. Another request that adds fields at the
    same time may still exceed the limit by them.
    """
    if not field_names or not await database.fetchval(MAY_EXCEED_LIMIT, field_names):
        return []
    rows = await database.fetch(DELETE_LINES_OVER_LIMIT, field_names, timeout=timeout)
    return sorted(row["line"] for row in rows)


def errors_over_limit(lines: Sequence[int], rejected: int) -> list[RejectedField]:
    """Return the errors to report of these lines, when `rejected` lines are reported already."""
    listed = lines[: max(0, MAX_REPORTED_LINES - rejected)]
    return [RejectedField(line, "fields", "", TOO_MANY_FIELDS) for line in listed]
