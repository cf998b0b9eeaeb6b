"""Every GET of the API, and the values of a data set that its path and query contain."""

import random
from urllib.parse import quote

import asyncpg

# Names in braces stand for values of the database; ids are drawn anew for each call.
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
    "/gateway",
)
PAGES = ("/", "/metrics")
"""Paths outside the API."""

# The pair of values of two columns for which the two values are frequent and the pair is rare.
RARE_PAIR = """
    SELECT {one}, {other} FROM (
        SELECT {one}, {other}, sum(clients) AS have_both,
            sum(sum(clients)) OVER (PARTITION BY {one}) AS have_one,
            sum(sum(clients)) OVER (PARTITION BY {other}) AS have_other
        FROM segment_count GROUP BY {one}, {other}) AS pair
    WHERE {one} IS NOT NULL AND {other} IS NOT NULL
    ORDER BY have_one * have_other / have_both DESC LIMIT 1"""
RARE_PAIRS = {
    ("operator_code", "time_zone"): ("code_rare_with_zone", "zone_rare_with_code"),
    ("operator_code", "tag"): ("code_rare_with_tag", "tag_rare_with_code"),
    ("tag", "time_zone"): ("tag_rare_with_zone", "zone_rare_with_tag"),
}
FREQUENT = {"code": "900", "tag": "tag-00", "zone": "Europe/Moscow"}
SELECT_VALUES = """
    SELECT (SELECT max(id) FROM mailing) AS mailings,
        (SELECT max(id) FROM mailing WHERE audience_until IS NOT NULL) AS largest,
        (SELECT max(id) FROM mailing WHERE status = 'finished') AS short,
        id AS existing_client, phone, (SELECT max(id) FROM client) AS clients
    FROM client WHERE deleted_at IS NULL ORDER BY id LIMIT 1"""
MESSAGE_IDS = "SELECT min(id), max(id) FROM message WHERE mailing_id = $1"


class CallValues:
    """The values of one database that replace the names in calls."""

    def __init__(self, fixed: dict[str, object], id_ranges: dict[str, tuple[int, int]]) -> None:
        self._fixed = fixed
        self._id_ranges = id_ranges

    def path(self, call: str, prefix: str = "/api/v1") -> str:
        """Return the path of a call; `prefix` goes before it unless it is one of `PAGES`.

        Ids are drawn from the middle half of their range.
        """
        ids = {}
        for name, (first, last) in self._id_ranges.items():
            quarter = (last - first) // 4
            ids[name] = random.randint(first + quarter, last - quarter)  # noqa: S311  # not for secrets
        return ("" if call in PAGES else prefix) + call.format(**self._fixed, **ids)


async def read_values(database: asyncpg.Connection) -> CallValues:
    """Read the values for calls from a database."""
    [row] = await database.fetch(SELECT_VALUES)
    values = dict(row) | FREQUENT
    for (one, other), names in RARE_PAIRS.items():
        [pair] = await database.fetch(RARE_PAIR.format(one=one, other=other))
        values |= zip(names, pair, strict=True)
    [(first, last)] = await database.fetch(MESSAGE_IDS, row["largest"])
    ids = {
        "client": (1, row["clients"]),
        "mailing": (1, row["mailings"]),
        "message": (first, last),
    }
    return CallValues({name: quote(str(value), safe="") for name, value in values.items()}, ids)
