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


# The two modes conflict with each other; the first one does not conflict with itself.
KEEP_ROUTES = text("LOCK TABLE operator_route IN ROW EXCLUSIVE MODE")
LOCK_ROUTES = text("LOCK TABLE operator_route IN SHARE ROW EXCLUSIVE MODE")
FIND_ROUTE = text("SELECT find_route(:names)").bindparams(bindparam("names", type_=ARRAY(String)))
SELECT_OPERATOR_ROUTES = text("SELECT operator_code, route FROM operator_route")
DELETE_OPERATOR_ROUTES = text("DELETE FROM operator_route")
INSERT_OPERATOR_ROUTES = text("""
    INSERT INTO operator_route (operator_code, route) SELECT * FROM unnest(:codes, :routes)
    """).bindparams(
    bindparam("codes", type_=ARRAY(String)), bindparam("routes", type_=ARRAY(BigInteger))
)
# Neither writes nor locks a row of `mailing`: that would be slow with thousands of open mailings.
REROUTE_OPEN_MAILINGS = text(f"""
    INSERT INTO rerouting (mailing_id, cursor)
    SELECT id, 0 FROM mailing WHERE {OPEN_MAILING} AND audience_until IS NOT NULL ORDER BY id
    ON CONFLICT (mailing_id) DO UPDATE SET cursor = 0""")  # noqa: S608  # no user input


async def keep_routes(connection: AsyncConnection) -> None:
    """Keep `operator_route` unchanged until the end of the caller's transaction.

    Call it in every transaction that gives messages the routes of this table, before the
    transaction locks anything else, to avoid deadlocks. So `apply_routes` finds no such transaction
    in progress, and the messages of all earlier ones get the new routes. Only the rerouting of
    messages does not need it: `apply_routes` waits for the rows that it has locked.
    """
    await connection.execute(KEEP_ROUTES)


async def apply_routes(
    connection: AsyncConnection, operator_codes: Mapping[str, Iterable[str] | None]
) -> bool:
    """Make these gateways the ones that take messages. Return whether that changes any route.

    The arguments are those of `routes_by_code`. Workers then determine the route of all scheduled
    messages again. The worker that was started or reloaded last decides for all. Call it before
    the caller's transaction locks anything else, to avoid deadlocks.
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
    await connection.execute(REROUTE_OPEN_MAILINGS)
    return True


DELETE_ENDED_WORKERS = text("DELETE FROM routes_applied WHERE worker <> ALL (:active)").bindparams(
    bindparam("active", type_=ARRAY(String))
)
# After `apply_routes` has locked the routes, so the times are in the order of the changes.
RECORD_APPLIED = text("""
    INSERT INTO routes_applied (worker, applied_at) VALUES (:worker, clock_timestamp())
    ON CONFLICT (worker) DO UPDATE SET applied_at = excluded.applied_at""")
SELECT_APPLIED_LATER = text("""
    SELECT worker FROM routes_applied WHERE applied_at > coalesce(
        (SELECT applied_at FROM routes_applied WHERE worker = :worker), '-infinity')""")


async def record_applied(connection: AsyncConnection, worker: str, active: Iterable[str]) -> None:
    """Record, in the transaction of `apply_routes`, that a worker has applied its routes.

    Records of workers that are not among the `active` ones are deleted.
    """
    await connection.execute(DELETE_ENDED_WORKERS, {"active": list(active)})
    await connection.execute(RECORD_APPLIED, {"worker": worker})


async def applied_later(connection: AsyncConnection, worker: str) -> set[str]:
    """Return the workers that have applied their routes later than this one."""
    return set(await connection.scalars(SELECT_APPLIED_LATER, {"worker": worker}))


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
