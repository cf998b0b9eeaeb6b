"""Find or count the clients whom many filters match, by one statement for all filters."""

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    String,
    bindparam,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.mailing.client_filter import ClientFilter, filter_lists, folded_terms

MAX_FILTER_VALUES = 5_000
"""Filter values that one statement searches by. A single filter may exceed this limit."""


class Filters:
    """The distinct filters of several mailings, each with a number."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._search_values: list[tuple[int, str, str]] = []
        self._other_conditions: list[dict[str, Any]] = []

    @property
    def is_full(self) -> bool:
        """Return whether one statement takes no more filters."""
        return len(self._search_values) >= MAX_FILTER_VALUES

    def add(self, stored: Any) -> int:  # noqa: ANN401  # JSON from a row of `mailing`
        """Add a stored filter; return its number, the same one for equal filters.

        Raises `msgspec.ValidationError` when it is not a valid filter.
        """
        key = msgspec.json.encode(stored, order="deterministic")
        if key not in self._numbers:
            number = len(self._numbers)
            values, conditions = _split_filter(msgspec.convert(stored, ClientFilter))
            self._search_values += ((number, column, value) for column, value in values)
            self._other_conditions.append({"number": number, **conditions})
            self._numbers[key] = number
        return self._numbers[key]

    def parameters(self) -> dict[str, Any]:
        """Return the SQL parameters of `MATCHING_SEGMENTS`."""
        numbers, columns, values = (
            zip(*self._search_values, strict=True) if self._search_values else ((),) * 3
        )
        return {
            "filters": list(numbers),
            "columns": list(columns),
            "values": list(values),
            "other_conditions": msgspec.json.encode(self._other_conditions).decode(),
        }


def _split_filter(
    client_filter: ClientFilter,
) -> tuple[list[tuple[str, str]], Mapping[str, list[str]]]:
    """Return (column, value) pairs to search segments by, and the other conditions by column.

    A client matches when it has one of the pairs and meets all other conditions. The pair
    `("", "")` matches all clients.
    """
    if isinstance(client_filter, str):
        terms = set(folded_terms(client_filter))
        return [(column, term) for column in ("operator_code", "tag") for term in terms], {}
    conditions = filter_lists(client_filter)
    for column in ("tag", "operator_code", "time_zone"):
        if column in conditions:
            return [(column, value) for value in set(conditions.pop(column))], conditions
    return [("", "")], {}


# Merged segment counts are found by an index, for each value of a filter. Deltas that are not
# merged yet are scanned once. The cost therefore grows with the number of matches and not with the
# size of the directory. A segment that several values of one filter match is kept once.
MATCHING_SEGMENTS = """
    wanted AS MATERIALIZED (
        SELECT * FROM unnest(:filters, :columns, :values) AS wanted (number, name, value)),
    other_conditions AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset((:other_conditions)::jsonb)
            AS other_conditions (number bigint, operator_code text[], time_zone text[])),
    found AS (
        SELECT wanted.*, segment.* FROM wanted CROSS JOIN LATERAL (
            SELECT * FROM segment_count
                WHERE wanted.name = 'operator_code' AND operator_code = wanted.value
            UNION ALL
            SELECT * FROM segment_count WHERE wanted.name = 'tag' AND tag = wanted.value
            UNION ALL
            SELECT * FROM segment_count WHERE wanted.name = 'time_zone' AND time_zone = wanted.value
            UNION ALL
            SELECT * FROM segment_count WHERE wanted.name = '') AS segment
        UNION ALL
        SELECT wanted.*, segment.* FROM segment_count_delta AS segment
            CROSS JOIN LATERAL (VALUES ('operator_code', segment.operator_code),
                ('tag', segment.tag), ('time_zone', segment.time_zone), ('', ''))
                AS has (name, value)
            JOIN wanted ON wanted.name = has.name AND wanted.value = has.value),
    matching AS MATERIALIZED (
        SELECT DISTINCT number, operator_code, tag, time_zone, clients FROM (
            SELECT number, found.operator_code, tag, found.time_zone,
                sum(clients)::bigint AS clients
            FROM found JOIN other_conditions AS other USING (number)
            WHERE (other.operator_code IS NULL OR found.operator_code = ANY (other.operator_code))
                AND (other.time_zone IS NULL OR found.time_zone = ANY (other.time_zone))
            GROUP BY number, name, value, found.operator_code, tag, found.time_zone
            HAVING sum(clients) > 0) AS by_value)"""
PARAMETERS: tuple[BindParameter[Any], ...] = (
    bindparam("filters", type_=ARRAY(BigInteger)),
    bindparam("columns", type_=ARRAY(String)),
    bindparam("values", type_=ARRAY(String)),
)
COUNT = text(f"""
    WITH {MATCHING_SEGMENTS}
    SELECT number, sum(clients)::bigint AS clients
    FROM matching GROUP BY number""").bindparams(*PARAMETERS)  # noqa: S608  # no user input
ZONES = text(f"""
    WITH {MATCHING_SEGMENTS}
    SELECT number, array_agg(DISTINCT time_zone) AS time_zones
    FROM matching GROUP BY number""").bindparams(*PARAMETERS)  # noqa: S608  # no user input


async def count(connection: AsyncConnection, filters: Filters) -> dict[int, int]:
    """Return how many clients each filter matches now, by its number; without those of 0."""
    rows = await connection.execute(COUNT, filters.parameters())
    return {row.number: row.clients for row in rows}
