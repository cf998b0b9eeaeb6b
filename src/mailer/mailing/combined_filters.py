"""Count the clients whom many filters match, by one statement for all filters.

A segment is all clients with the same operator code, tag and time zone, the only fields that a
filter can ask for. The table `segment_count` stores the size of each segment. Therefore filters are
matched with segments and never with clients. Only of a filter with lists of clients, the clients on
them are read.
"""

from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ARRAY, BigInteger, BindParameter, String, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.mailing.client_filter import (
    ClientFilter,
    filter_fields,
    folded_terms,
    list_name_keys,
)

MAX_FILTER_VALUES = 5_000
"""Filter values that one statement searches by. A single filter may exceed this limit."""
MAX_WITH_LISTS, MAX_LISTED_CLIENTS = 20, 200_000
"""Filters with lists in one statement, and the clients of their lists, after which no further
filter is added: the statement reads each of these clients."""


class SearchValue(NamedTuple):
    """A value by which an index finds segments."""

    column: str
    """`operator_code`, `tag` or `time_zone`; `list` for a list of clients; empty when all segments
    are wanted."""
    value: str
    """Of a tag or a list, the folded form."""


class FilterParts(NamedTuple):
    """A filter in the form that the SQL needs.

    A segment matches when it has one of the search values and meets all other conditions.
    """

    search_values: list[SearchValue]
    other_conditions: dict[str, list[str]]
    """The permitted values by column."""


class CombinedFilters:
    """The distinct filters of several mailings. Each has a number, counted from 0."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        """Numbers by the filter as JSON."""
        self._search_values: list[tuple[int, SearchValue]] = []
        """Each with the number of its filter."""
        self._other_conditions: list[dict[str, Any]] = []
        self._with_lists = 0
        """How many filters have lists of clients."""
        self._listed_clients = 0
        """The clients of the lists of these filters."""

    @property
    def is_full(self) -> bool:
        """Return whether no further filter should be added for one statement."""
        return (
            len(self._search_values) >= MAX_FILTER_VALUES
            or self._with_lists >= MAX_WITH_LISTS
            or self._listed_clients >= MAX_LISTED_CLIENTS
        )

    def add(self, stored: Any, listed: int = 0) -> int:  # noqa: ANN401  # JSON from a row of `mailing`
        """Add a stored filter; return its number, the same one for equal filters.

        `listed` is how many clients its lists have together.
        Raises `msgspec.ValidationError` when it is not a valid filter.
        """
        key = msgspec.json.encode(stored, order="deterministic")
        if key not in self._numbers:
            number = len(self._numbers)
            client_filter = msgspec.convert(stored, ClientFilter)
            parts = _split_filter(client_filter)
            if list_name_keys(client_filter) is not None:
                self._with_lists += 1
                self._listed_clients += listed
            self._search_values += ((number, search) for search in parts.search_values)
            self._other_conditions.append({"number": number, **parts.other_conditions})
            self._numbers[key] = number
        return self._numbers[key]

    def parameters(self) -> dict[str, Any]:
        """Return the SQL parameters of `MATCHING_SEGMENTS`."""
        return {
            "filters": [number for number, _ in self._search_values],
            "columns": [search.column for _, search in self._search_values],
            "values": [search.value for _, search in self._search_values],
            "other_conditions": msgspec.json.encode(self._other_conditions).decode(),
        }


def _split_filter(client_filter: ClientFilter) -> FilterParts:
    """Choose by which of its values a filter searches; the rest become other conditions.

    Lists of clients are searched by first. Else those values are that are expected to match the
    fewest segments: tags, then operator codes, then time zones.
    """
    if isinstance(client_filter, str):  # either column may equal a term
        terms = set(folded_terms(client_filter))
        columns = ("operator_code", "tag")
        return FilterParts([SearchValue(name, term) for name in columns for term in terms], {})
    fields = filter_fields(client_filter)
    if (name_keys := list_name_keys(client_filter)) is not None:
        return FilterParts([SearchValue("list", key) for key in name_keys], fields)
    for column in ("tag", "operator_code", "time_zone"):
        if column in fields:
            values = set(fields.pop(column))
            return FilterParts([SearchValue(column, value) for value in values], fields)
    return FilterParts([SearchValue("", "")], {})


# Common table expressions for a WITH clause. The last one, `matching`, has a row for each filter
# number and segment that match, with the number of clients.
# - `wanted`: the search values. `other_conditions`: a row for each filter, null where any value is
#   permitted.
# - `found`: the segments that have a search value. An index finds them in `segment_count`, once for
#   each search value. Changes that are not merged into `segment_count` yet (its deltas) are read
#   once and compared with all search values. So the cost grows with the number of matches, and not
#   with the size of the directory.
# - `listed`: the clients that match a filter with lists. Each list is read in the order of its
#   primary key, and then each client by its id: OFFSET 0 keeps the planner from another way.
# - `matching`: the sum of counts and deltas. A segment that several search values of one filter
#   find is kept once, by DISTINCT. A segment of a filter with lists has the ids of its clients.
MATCHING_SEGMENTS = """
    wanted AS MATERIALIZED (
        SELECT * FROM unnest(:filters, :columns, :values) AS wanted (number, name, value)),
    other_conditions AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset((:other_conditions)::jsonb)
            AS other_conditions (
                number bigint, operator_code text[], tag text[], time_zone text[])),
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
    listed AS (
        SELECT other.number, client.* FROM (
                SELECT DISTINCT wanted.number, member.client_id
                FROM wanted
                    JOIN client_list ON wanted.name = 'list' AND name_key = wanted.value
                    CROSS JOIN LATERAL (
                        SELECT client_id FROM client_list_member
                        WHERE list_id = client_list.id ORDER BY client_id OFFSET 0) AS member
            ) AS member
            JOIN other_conditions AS other ON other.number = member.number
            CROSS JOIN LATERAL (
                SELECT id, operator_code, tag, time_zone FROM client
                WHERE id = member.client_id AND deleted_at IS NULL OFFSET 0) AS client
        WHERE (other.operator_code IS NULL OR client.operator_code = ANY (other.operator_code))
            AND (other.tag IS NULL OR client.tag = ANY (other.tag))
            AND (other.time_zone IS NULL OR client.time_zone = ANY (other.time_zone))),
    matching AS MATERIALIZED (
        SELECT DISTINCT number, operator_code, tag, time_zone, clients, NULL::bigint[] AS client_ids
        FROM (
            SELECT number, found.operator_code, found.tag, found.time_zone,
                sum(clients)::bigint AS clients
            FROM found JOIN other_conditions AS other USING (number)
            WHERE (other.operator_code IS NULL OR found.operator_code = ANY (other.operator_code))
                AND (other.time_zone IS NULL OR found.time_zone = ANY (other.time_zone))
            GROUP BY number, name, value, found.operator_code, found.tag, found.time_zone
            HAVING sum(clients) > 0) AS by_value
        UNION ALL
        SELECT number, operator_code, tag, time_zone, count(*), array_agg(id)
        FROM listed GROUP BY number, operator_code, tag, time_zone)"""
MATCHING_PARAMETERS: tuple[BindParameter[Any], ...] = (
    bindparam("filters", type_=ARRAY(BigInteger)),
    bindparam("columns", type_=ARRAY(String)),
    bindparam("values", type_=ARRAY(String)),
)
"""The parameters of `MATCHING_SEGMENTS` whose types must be declared."""
COUNT_BY_FILTER = text(f"""
    WITH {MATCHING_SEGMENTS}
    SELECT number, sum(clients)::bigint AS clients
    FROM matching GROUP BY number""").bindparams(*MATCHING_PARAMETERS)  # noqa: S608  # no user input
ZONES_BY_FILTER = text(f"""
    WITH {MATCHING_SEGMENTS}
    SELECT number, array_agg(DISTINCT time_zone) AS time_zones
    FROM matching GROUP BY number""").bindparams(*MATCHING_PARAMETERS)  # noqa: S608  # no user input


async def count(connection: AsyncConnection, filters: CombinedFilters) -> dict[int, int]:
    """Return how many clients each filter matches now, by its number; a count of 0 is left out."""
    rows = await connection.execute(COUNT_BY_FILTER, filters.parameters())
    return {row.number: row.clients for row in rows}


async def find_time_zones(
    connection: AsyncConnection, filters: CombinedFilters
) -> dict[int, list[str]]:
    """Return the time zones of the clients whom each filter matches now, by its number."""
    rows = await connection.execute(ZONES_BY_FILTER, filters.parameters())
    return {row.number: row.time_zones for row in rows}
