"""The limit of fields of a client, when an import adds some to those that the client has.

Lines over the limit are found while the file is read. When the lines are stored, they are checked
again, because clients may have got more fields meanwhile.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager

import asyncpg

from mailer.client.fields import MAX_CLIENT_FIELDS, TOO_MANY_FIELDS
from mailer.client.rows import MAX_REPORTED_LINES, RejectedField, StagedRow

# Whether the clients and the file together have so many names that a client may get too many.
# Hardly any directory has, so that hardly any import reads the clients for it.
MAY_EXCEED_LIMIT = f"""
    SELECT count(*) > {MAX_CLIENT_FIELDS} FROM (
        SELECT unnest($1::text[]) UNION SELECT name FROM all_client_field_counts
        LIMIT {MAX_CLIENT_FIELDS + 1}) AS name"""  # noqa: S608  # no user input
# $1: the names that the file has columns for.
IS_OVER_LIMIT = f"""client.phone = staged.phone AND (
        SELECT count(*) FROM jsonb_object_keys((client.fields - $1::text[]) || staged.fields)
    ) > {MAX_CLIENT_FIELDS}"""  # noqa: S608  # no user input
FIND_LINES_OVER_LIMIT = f"""
    SELECT line FROM client, unnest($2::bigint[], $3::text[], $4::jsonb[])
        AS staged (line, phone, fields)
    WHERE {IS_OVER_LIMIT}"""  # noqa: S608  # no user input
DELETE_LINES_OVER_LIMIT = f"""
    DELETE FROM client_import AS staged USING client
    WHERE {IS_OVER_LIMIT} RETURNING line"""  # noqa: S608  # no user input


class FieldLimit:
    """Finds the lines of a file that would give a client too many fields.

    `connect` returns a connection to the database, which is in use for one query at a time.
    """

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[asyncpg.Connection]]
    ) -> None:
        self._connect = connect
        self.may_be_exceeded: bool | None = None
        """Whether a line may be over the limit; None until `find` has asked the database."""

    async def find(self, field_names: Sequence[str], rows: Sequence[StagedRow]) -> Collection[int]:
        """Return which lines are over the limit, of a file with columns for these fields."""
        if not field_names or self.may_be_exceeded is False:
            return ()
        columns = [[row[index] for row in rows] for index in (0, 1, -1)]
        async with self._connect() as database:
            if self.may_be_exceeded is None:
                self.may_be_exceeded = await database.fetchval(MAY_EXCEED_LIMIT, field_names)
            if not self.may_be_exceeded:
                return ()
            found = await database.fetch(FIND_LINES_OVER_LIMIT, field_names, *columns)
        return {row["line"] for row in found}


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
