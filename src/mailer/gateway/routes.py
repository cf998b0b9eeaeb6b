"""SQL of routes: which gateways may take a message, and which gateways users have paused.

A route is a set of gateways with an id. The newest configuration decides the route of a message by
the client's operator code, or the mailing names one gateway. `order` and `weight` are no part of a
route: each worker takes them from its own configuration when it claims messages.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import asyncpg
from sqlalchemy import ARRAY, BigInteger, String, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.tables.mailing import OPEN_MAILING
from mailer.gateway.router import GatewayTables

OTHER_CODES = ""
"""The operator code of the row that is for all codes without a row of their own."""

JOIN_OPERATOR_ROUTE = """
    LEFT JOIN operator_route ON operator_route.operator_code = {operator_code}"""
"""SQL that a statement with `ROUTE` needs; `operator_code` is that of the message."""
# The subquery does not depend on the row, so that PostgreSQL evaluates it once.
ROUTE = """coalesce({mailing_route}, operator_route.route,
    (SELECT route FROM operator_route AS other WHERE other.operator_code = ''))"""
"""SQL for the route of a message; `mailing_route` is that of the mailing's own gateway, or null."""


def routes_by_code(
    operator_codes: Mapping[str, Iterable[str] | None],
) -> dict[str, frozenset[str]]:
    """Return the names of the gateways for each operator code, and for `OTHER_CODES`.

    `operator_codes` maps the name of each gateway to its operator codes, or to None for all codes.
    """
    for_all = {name for name, codes in operator_codes.items() if codes is None}
    names: dict[str, set[str]] = defaultdict(lambda: set(for_all))
    for name, codes in operator_codes.items():
        for code in codes or ():
            names[code].add(name)
    return {OTHER_CODES: frozenset(for_all)} | {
        code: frozenset(of_code) for code, of_code in names.items()
    }


LOCK_ROUTES = text("LOCK TABLE operator_route IN SHARE ROW EXCLUSIVE MODE")
FIND_ROUTE = text("SELECT find_route(:names)").bindparams(bindparam("names", type_=ARRAY(String)))
SELECT_OPERATOR_ROUTES = text("SELECT operator_code, route FROM operator_route")
DELETE_OPERATOR_ROUTES = text("DELETE FROM operator_route")
INSERT_OPERATOR_ROUTES = text("""
    INSERT INTO operator_route (operator_code, route) SELECT * FROM unnest(:codes, :routes)
    """).bindparams(
    bindparam("codes", type_=ARRAY(String)), bindparam("routes", type_=ARRAY(BigInteger))
)
REROUTE_OPEN_MAILINGS = text(f"""
    UPDATE mailing SET reroute_cursor = 0
    WHERE {OPEN_MAILING} AND audience_until IS NOT NULL
        AND reroute_cursor IS DISTINCT FROM 0""")  # noqa: S608  # no user input


async def apply_routes(
    connection: AsyncConnection, operator_codes: Mapping[str, Iterable[str] | None]
) -> bool:
    """Make these gateways the ones that take messages. Return whether that changes any route.

    The arguments are those of `routes_by_code`. Workers then determine the route of all scheduled
    messages again. The worker that was started or reloaded last decides for all. After a change,
    commit the transaction and call `reroute_open_mailings` in another one.
    """
    await connection.execute(LOCK_ROUTES)
    for name in operator_codes:  # for messages that only this gateway may take
        await find_route(connection, [name])
    wanted = {
        code: await find_route(connection, names)
        for code, names in routes_by_code(operator_codes).items()
    }
    rows = await connection.execute(SELECT_OPERATOR_ROUTES)
    if wanted == {row.operator_code: row.route for row in rows}:
        return False
    await connection.execute(DELETE_OPERATOR_ROUTES)
    values = {"codes": list(wanted), "routes": list(wanted.values())}
    await connection.execute(INSERT_OPERATOR_ROUTES, values)
    await reroute_open_mailings(connection)
    return True


async def reroute_open_mailings(connection: AsyncConnection) -> None:
    """Make workers determine the route of all scheduled messages of started mailings again.

    `apply_routes` does so before its commit, so that a crash loses nothing. But a mailing that is
    created or retried before that commit is not seen, and its messages may get the former routes.
    """
    await connection.execute(REROUTE_OPEN_MAILINGS)


async def find_route(connection: AsyncConnection, names: Iterable[str]) -> int:
    """Return the id of the route with these gateways; add the route if it is new."""
    return int((await connection.execute(FIND_ROUTE, {"names": list(names)})).scalar_one())


SELECT_NAMES = text("""
    SELECT DISTINCT unnest(gateways) FROM operator_route JOIN route ON route.id = route ORDER BY 1
    """)


async def gateway_names(connection: AsyncConnection) -> list[str]:
    """Return the names of the gateways that the newest configuration has."""
    return list(await connection.scalars(SELECT_NAMES))


SELECT_ROUTES = "SELECT id, gateways FROM route"
SELECT_PAUSES = "SELECT gateway, paused_at FROM gateway_pause"


async def read_tables(connection: asyncpg.Connection) -> GatewayTables:
    """Return all routes and pauses."""
    routes = await connection.fetch(SELECT_ROUTES)
    pauses = await connection.fetch(SELECT_PAUSES)
    return GatewayTables(
        routes={id_: frozenset(names) for id_, names in routes},
        paused_at={name: at for name, at in pauses},  # noqa: C416  # a record is no tuple
    )


PAUSE = text("""
    INSERT INTO gateway_pause (gateway, paused_by) VALUES (:gateway, :paused_by)
    ON CONFLICT DO NOTHING""")
RESUME = text("DELETE FROM gateway_pause WHERE gateway = :gateway")


async def pause(connection: AsyncConnection, gateway: str, paused_by: str) -> bool:
    """Pause a gateway. Return False if it is paused already."""
    values = {"gateway": gateway, "paused_by": paused_by}
    return bool((await connection.execute(PAUSE, values)).rowcount)


async def resume(connection: AsyncConnection, gateway: str) -> bool:
    """Resume a gateway. Return False if it is not paused."""
    return bool((await connection.execute(RESUME, {"gateway": gateway})).rowcount)
