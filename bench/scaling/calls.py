"""Every GET of the API with its filters, as calls on a data set of `data.py`.

A call is a path with names in braces, such as `/clients?before={client}`. `CallValues` replaces the
names by values of a database. Ids are drawn anew each time; other values stay the same.
"""

import random
from urllib.parse import quote

import asyncpg

CLIENTS = (
    "",
    "?before={client}",
    "?after={client}",
    "?operator_code={code}",
    "?operator_code={code}&before={client}",
    "?operator_code=989",
    "?tag={tag}",
    "?tag={tag}&after={client}",
    "?tag=rare",
    "?tag=nobody",
    "?time_zone={zone}",
    "?time_zone={zone}&before={client}",
    "?time_zone=UTC",
    "?phone={phone}",
    "?phone=70000000000",
    "?operator_code={code}&tag={tag}",
    "?operator_code={code}&tag={tag}&before={client}",
    "?operator_code={code}&tag=rare",
    "?operator_code={code}&time_zone={zone}",
    "?operator_code={code}&tag={tag}&time_zone={zone}",
    "?tag={tag}&time_zone={zone}&after={client}",
    "?operator_code={code}&time_zone=UTC",
    "?operator_code={code}&time_zone=UTC&before={client}",
    "?operator_code={code_rare_with_zone}&time_zone={zone_rare_with_code}",
    "?operator_code={code_rare_with_tag}&tag={tag_rare_with_code}",
    "?tag={tag_rare_with_zone}&time_zone={zone_rare_with_tag}",
    "?time_zone={zone}&phone={phone}",
    "?limit=1000",
    "?limit=1000&before={client}",
    "/{existing_client}",
)
MAILINGS = (
    "",
    "?before={mailing}",
    "?after={mailing}",
    "?status=scheduled",
    "?status=running",
    "?status=paused",
    "?status=finished",
    "?status=finished&before={mailing}",
    "?status=cancelled",
    "?limit=1000",
    "?limit=1000&status=finished",
    "/{largest}",
    "/{short}",
    "/{largest}/statistics",
    "/{largest}/statistics?bucket=86400",
    "/{short}/statistics",
    "/{short}/messages",
    "/{short}/messages?status=delivered",
)
MESSAGES = (
    "",
    "?before={message}",
    "?after={message}",
    "?status=scheduled",
    "?status=sending",
    "?status=delivered",
    "?status=undelivered",
    "?status=unknown",
    "?status=cancelled",
    "?status=delivered&before={message}",
    "?reason=rejected_400",
    "?reason=rejected_400&after={message}",
    "?reason=rejected_451",
    "?reason=nothing",
    "?status=undelivered&reason=rejected_400",
    "?status=undelivered&reason=rejected_451",
    "?status=scheduled&reason=http_503",
    "?status=scheduled&reason=http_503&before={message}",
    "?status=delivered&reason=rejected_400",
    "?status=unknown&reason=timeout&after={message}",
    "?client_id={client}",
    "?client_id={client}&status=delivered",
    "?client_id={client}&reason=rejected_400",
    "?limit=1000",
    "?limit=1000&before={message}",
    "?limit=1000&status=delivered",
)
CALLS = (
    *(f"/clients{query}" for query in CLIENTS),
    *(f"/mailings{query}" for query in MAILINGS),
    *(f"/mailings/{{largest}}/messages{query}" for query in MESSAGES),
    "/statistics",
    "/gateways",
)
PAGES = ("/", "/metrics")
"""Paths outside the API."""

# A pair of values, one of each of two columns of a client. Many clients have the one value and many
# have the other, but few have both. Such a filter is hard for PostgreSQL: an index on one column
# finds many clients that do not match. The pair is chosen by comparing the clients that have both
# with the clients that would have both if the columns were independent.
RARE_PAIR = """
    SELECT {one}, {other} FROM (
        SELECT {one}, {other}, sum(clients) AS have_both,
            sum(sum(clients)) OVER (PARTITION BY {one}) AS have_one,
            sum(sum(clients)) OVER (PARTITION BY {other}) AS have_other
        FROM segment_count GROUP BY {one}, {other}) AS pair
    WHERE {one} IS NOT NULL AND {other} IS NOT NULL
    ORDER BY have_one * have_other / have_both DESC LIMIT 1"""
# By the two columns: the names in calls for the two values of their rare pair.
RARE_PAIRS = {
    ("operator_code", "time_zone"): ("code_rare_with_zone", "zone_rare_with_code"),
    ("operator_code", "tag"): ("code_rare_with_tag", "tag_rare_with_code"),
    ("tag", "time_zone"): ("tag_rare_with_zone", "zone_rare_with_tag"),
}
FREQUENT = {"code": "900", "tag": "tag-00", "zone": "Europe/Moscow"}
"""By name in calls: values that many clients have."""
# `largest` is the mailing to all clients, the last one with messages. `short` is a finished mailing
# with an ordinary audience. `mailings` and `clients` are the largest ids.
SELECT_VALUES = """
    SELECT (SELECT max(id) FROM mailing) AS mailings,
        (SELECT max(id) FROM mailing WHERE audience_until IS NOT NULL) AS largest,
        (SELECT max(id) FROM mailing WHERE status = 'finished') AS short,
        id AS existing_client, phone, (SELECT max(id) FROM client) AS clients
    FROM client WHERE deleted_at IS NULL ORDER BY id LIMIT 1"""
MESSAGE_IDS = "SELECT min(id), max(id) FROM message WHERE mailing_id = $1"


class CallValues:
    """The values of one database that replace the names in calls.

    `fixed` contains the values that never change, escaped for a URL. `id_ranges` contains the
    lowest and the highest of the ids that are drawn anew for each call.
    """

    def __init__(self, fixed: dict[str, str], id_ranges: dict[str, tuple[int, int]]) -> None:
        self._fixed = fixed
        self._id_ranges = id_ranges

    def path(self, call: str, prefix: str = "/api/v1") -> str:
        """Return the path of a call; `prefix` goes before it unless it is one of `PAGES`.

        Ids are drawn from the middle half of their range, so that pages before and after them
        exist.
        """
        ids = {}
        for name, (first, last) in self._id_ranges.items():
            quarter = (last - first) // 4
            lowest, highest = first + quarter, last - quarter
            ids[name] = random.randint(lowest, highest)  # noqa: S311  # not for secrets
        return ("" if call in PAGES else prefix) + call.format(**self._fixed, **ids)


async def read_values(database: asyncpg.Connection) -> CallValues:
    """Read the values for calls from a database."""
    [row] = await database.fetch(SELECT_VALUES)
    values = dict(row) | FREQUENT
    for (one, other), names in RARE_PAIRS.items():
        [pair] = await database.fetch(RARE_PAIR.format(one=one, other=other))
        values |= zip(names, pair, strict=True)
    [(first_message, last_message)] = await database.fetch(MESSAGE_IDS, row["largest"])
    id_ranges = {
        "client": (1, row["clients"]),
        "mailing": (1, row["mailings"]),
        "message": (first_message, last_message),
    }
    fixed = {name: quote(str(value), safe="") for name, value in values.items()}
    return CallValues(fixed, id_ranges)
