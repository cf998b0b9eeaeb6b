"""Every GET of the API, and what of a data set it asks for."""

import random
from urllib.parse import quote

import asyncpg

# What is in braces is the database's, or drawn anew for each call.
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
    "?operator_code={scarce_code}&time_zone={zone_of_code}",
    "?operator_code={code_of_tag}&tag={tag_of_code}",
    "?tag={scarce_tag}&time_zone={zone_of_tag}",
    "?time_zone={zone}&phone={phone}",
    "?limit=1000",
    "?limit=1000&before={client}",
    "/{living}",
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
    *(f"/clients{rest}" for rest in CLIENTS),
    *(f"/mailings{rest}" for rest in MAILINGS),
    *(f"/mailings/{{largest}}/messages{rest}" for rest in MESSAGES),
    "/statistics",
    "/gateway",
)
PAGES = ("/", "/metrics")
"""Outside the API."""

# Of two columns the values of which most clients have one, for each that has both.
SCARCE = """
    SELECT {one}, {other} FROM (
        SELECT {one}, {other}, sum(clients) AS have_both,
            sum(sum(clients)) OVER (PARTITION BY {one}) AS have_one,
            sum(sum(clients)) OVER (PARTITION BY {other}) AS have_other
        FROM directory GROUP BY {one}, {other}) AS pair
    WHERE {one} IS NOT NULL AND {other} IS NOT NULL
    ORDER BY have_one * have_other / have_both DESC LIMIT 1"""
SCARCE_PAIRS = {
    ("operator_code", "time_zone"): ("scarce_code", "zone_of_code"),
    ("operator_code", "tag"): ("code_of_tag", "tag_of_code"),
    ("tag", "time_zone"): ("scarce_tag", "zone_of_tag"),
}
FREQUENT = {"code": "900", "tag": "tag-00", "zone": "Europe/Moscow"}
LOOK = """
    SELECT (SELECT max(id) FROM mailing) AS mailings,
        (SELECT max(id) FROM mailing WHERE audience_until IS NOT NULL) AS largest,
        (SELECT max(id) FROM mailing WHERE status = 'finished') AS short, id AS living, phone,
        (SELECT max(id) FROM client) AS clients
    FROM client WHERE deleted_at IS NULL ORDER BY id LIMIT 1"""
MESSAGE_IDS = "SELECT min(id), max(id) FROM message WHERE mailing_id = $1"


class Values:
    """What calls ask for of one database."""

    def __init__(self, own: dict[str, object], ids: dict[str, tuple[int, int]]) -> None:
        self._own = own
        self._ids = ids

    def path(self, call: str, prefix: str = "/api/v1") -> str:
        """Return the path of a call, below `prefix` where it is not one of `PAGES`.

        Ids that are drawn come from the middle half.
        """
        drawn = {}
        for name, (first, last) in self._ids.items():
            quarter = (last - first) // 4
            drawn[name] = random.randint(first + quarter, last - quarter)  # noqa: S311  # not for secrets
        return ("" if call in PAGES else prefix) + call.format(**self._own, **drawn)


async def look(database: asyncpg.Connection) -> Values:
    """Return what calls can ask for of a database."""
    [known] = await database.fetch(LOOK)
    values = dict(known) | FREQUENT
    for (one, other), names in SCARCE_PAIRS.items():
        [pair] = await database.fetch(SCARCE.format(one=one, other=other))
        values |= zip(names, pair, strict=True)
    [(first, last)] = await database.fetch(MESSAGE_IDS, known["largest"])
    ids = {
        "client": (1, known["clients"]),
        "mailing": (1, known["mailings"]),
        "message": (first, last),
    }
    return Values({name: quote(str(value), safe="") for name, value in values.items()}, ids)
