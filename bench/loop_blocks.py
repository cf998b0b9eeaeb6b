"""The longest block of the event loop under every route, by periodic jobs and hostile headers.

A real process with clients in every time zone, tags by the hundred and mailings in several states
is called on each route by the worst that a sender may send: long queries and headers, the largest
bodies, deep and wide JSON, the longest filters and texts. `watched.py` tells each block. Limit on
the processor time of a block, median of three calls: 50 ms. Takes about three minutes.
"""

import argparse
import asyncio
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any
from urllib.parse import quote_plus

import aiohttp
import msgspec
import uvloop
from litestar.routes import HTTPRoute
from sqlalchemy.ext.asyncio import create_async_engine

import harness
from mailer.access import accounts, service
from mailer.access.model import COMMAND_LINE
from mailer.app import create_app
from mailer.client.model import known_zones
from mailer.db.engine import create_engine

LIMIT = 0.05
TIMES = 3
SETTLE = 0.03
"""Seconds after an answer for its blocks to be told."""
JOBS = 25.0
"""Seconds to watch what the process does by itself."""
HOUR = timedelta(hours=1)
NAME, PASSWORD = "bench", "a pass phrase of a benchmark"
KIB, MIB = 1024, 1024 * 1024

ADD_CLIENTS = """
    INSERT INTO client (phone, operator_code, tag, time_zone)
    SELECT '79' || lpad(n::text, 9, '0'), '9' || lpad((n % 100)::text, 2, '0'),
        'tag ' || n % 1000, ($2::text[])[1 + n % cardinality($2::text[])]
    FROM generate_series(1, $1::bigint) AS n"""
TAKEN = "SELECT scheduled + sending + delivered + undelivered FROM ledger WHERE mailing_id = $1"
ZONES = "SELECT array_agg(name) FROM pg_timezone_names WHERE name = ANY($1)"


class Call(msgspec.Struct, frozen=True):
    """A request, and the route that answers it."""

    method: str
    route: str
    what: str
    """What is bad about it."""
    path: str
    body: bytes | None = None
    headers: dict[str, str] = {}
    is_stream: bool = False


HEADERS = {
    "many languages": {"Accept-Language": "," * 31_000},
    "languages of many parts": {"Accept-Language": ",".join(["a-b-c-d-e;q=0.1"] * 2_000)},
    "many encodings": {"Accept-Encoding": ",".join(["gzip;q=0.1"] * 2_800)},
    "many types": {"Accept": ",".join(["a/b;q=0.1"] * 3_000)},
    "a type of many parameters": {"Accept": "a/b" + ";a=b" * 7_000},
    "many cookies": {"Cookie": "; ".join(f"a{n}=b" for n in range(3_500))},
    "a cookie of quotes": {"Cookie": 'a="' + '\\"' * 15_000},
    "many proxies": {"X-Forwarded-For": ",".join(["10.0.0.1"] * 3_300)},
    "many schemes": {"X-Forwarded-Proto": ",".join(["https"] * 5_000)},
    "a content type of many parameters": {"Content-Type": "a/b" + ";a=b" * 7_000},
    "a content type of quotes": {"Content-Type": 'a/b; a="' + '\\"' * 15_000},
    "a long bearer": {"Authorization": "Bearer " + "a" * 31_000},
    "many ranges": {"Range": "bytes=" + ",".join(["0-1"] * 7_500)},
    "many tags": {"If-None-Match": ",".join(['"a"'] * 7_500)},
    "a long idempotency key": {"Idempotency-Key": "a" * 31_000},
    "many headers": {f"X-{n}": "a" * 300 for n in range(90)},
}
QUERIES = {
    "many parameters": "&".join(["a=b"] * 2_000),
    "many separators": "&" * 8_000,
    "an escaped parameter": "search=" + "%D0%B0" * 1_300,
    "a long number": "limit=" + "9" * 8_000,
}
JSON_BODIES = {
    "deep JSON": b"[" * MIB,
    "deep and whole JSON": b'{"a":' * 1000 + b"1" + b"}" * 1000,
    "JSON of many fields": b"{" + b",".join(b'"a%d":1' % n for n in range(90_000)) + b"}",
    "JSON of many numbers": b'{"text":[' + b"1," * 500_000 + b"1]}",
    "a long number": b'{"text":' + b"9" * (MIB - 100) + b"}",
    "a long text": b'{"text":"' + b"a" * (MIB - 100) + b'"}',
    "a text of escapes": b'{"text":"' + b"\\u0430" * 170_000 + b'"}',
}
FORM_BODIES = {
    "many fields": b"a=b&" * 16_000,
    "a field of escapes": b"text=" + b"%D0%B0" * 10_600,
    "separators": b"&" * (64 * KIB - 10),
}


def filter_of(entries: int, zones: list[str]) -> dict[str, list[str]]:
    """Return the longest filter there may be, as far as `entries` go."""
    return {
        "operator_codes": [f"{n:03}" for n in range(entries)][:1000],
        "tags": [f"tag {n} {'x' * 50}" for n in range(entries)],
        "time_zones": zones[:entries],
    }


def a_mailing(**fields: object) -> dict[str, object]:
    """Return a mailing that begins tomorrow."""
    start = datetime.now(UTC) + 24 * HOUR
    return {
        "datetime_start": start.isoformat(),
        "datetime_end": (start + 50 * 24 * HOUR).isoformat(),
        "send_interval_time_start": "09:00",
        "send_interval_time_end": "21:00",
        "text": "Hello",
        "client_filter": None,
    } | fields


def a_form(**fields: str) -> bytes:
    """Return the form of such a mailing."""
    start = datetime.now(UTC) + 24 * HOUR
    given = {
        "text": "Ж" * 1600,
        "start": start.strftime("%Y-%m-%dT%H:%M"),
        "end": (start + 50 * 24 * HOUR).strftime("%Y-%m-%dT%H:%M"),
        "opens": "09:00",
        "closes": "21:00",
        "on_unknown": "retry",
        "time_zone": "UTC",
    } | fields
    return "&".join(f"{name}={quote_plus(value)}" for name, value in given.items()).encode()


FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}
CSV = {"Content-Type": "text/csv"}


class Target(msgspec.Struct, frozen=True):
    """What a path asks for."""

    mailing_id: int
    message_id: int
    client_id: int = 1
    account_id: int = 1
    key_id: int = 1
    verb: str = "pause"
    file_path: str = "docs.js"

    def path(self, route: str) -> str:
        """Return a path of a route."""
        for kind in ("int", "str", "path"):
            route = route.replace(f":{kind}}}", "}")
        return route.format(**msgspec.structs.asdict(self)).replace("//", "/")


def routes() -> Iterator[tuple[str, str]]:
    """Yield every method and route that mailer answers."""
    app = create_app(create_async_engine("postgresql+asyncpg://nowhere/none"))
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            yield from ((method, route.path) for method in route.route_handler_map)


def calls(target: Target) -> Iterator[Call]:
    """Yield the worst calls of every route."""
    every = sorted(set(routes()))
    for method, route in every:
        path = target.path(route)
        if method in {"POST", "PATCH"}:
            is_api = route.startswith("/api/")
            headers = CSV if "import" in route else JSON if is_api else FORM
            for what, body in (JSON_BODIES if is_api else FORM_BODIES).items():
                yield Call(method, route, what, path, body, headers)
        elif method == "GET":
            is_stream = route.startswith("/live/")
            full = f"{path}?ids={target.mailing_id}" if route == "/live/mailings" else path
            yield Call(method, route, "plain", full, is_stream=is_stream)
            for what, query in QUERIES.items():
                yield Call(method, route, what, f"{path}?{query}")
    yield from headers_of(every, target)
    yield from long_calls(target)


def headers_of(every: list[tuple[str, str]], target: Target) -> Iterator[Call]:
    """Yield calls with hostile headers, of a route of each kind."""
    for route in ("/api/v1/clients", "/clients", "/login", "/health/live", "/docs", "/nowhere"):
        for what, headers in HEADERS.items():
            yield Call("GET", route, what, target.path(route), headers=headers)
    yield from (
        Call(method, route, "plain", target.path(route))
        for method, route in every
        if method not in {"GET", "POST", "PATCH", "DELETE"}
    )


def long_calls(target: Target) -> Iterator[Call]:
    """Yield what is right and as large as it may be."""
    long_filter = filter_of(1000, ["Europe/Moscow", "Asia/Omsk"] * 500)
    body = msgspec.json.encode(a_mailing(client_filter=long_filter, text="Ж" * 1600))
    yield Call("POST", "/api/v1/mailings", "the longest filter", "/api/v1/mailings", body, JSON)
    terms = ",".join(f"tag {n}" for n in range(1000))
    body = msgspec.json.encode(a_mailing(client_filter=terms))
    yield Call("POST", "/api/v1/mailings", "a filter of terms", "/api/v1/mailings", body, JSON)
    commas = "," * 900_000
    body = msgspec.json.encode(a_mailing(client_filter=commas))
    yield Call("POST", "/api/v1/mailings", "a filter of commas", "/api/v1/mailings", body, JSON)
    for kind in ("tags", "time_zones", "operator_codes"):
        body = msgspec.json.encode(a_mailing(client_filter={kind: ["a"] * 200_000}))
        what = f"200,000 {kind}"
        yield Call("POST", "/api/v1/mailings", what, "/api/v1/mailings", body, JSON)
    for route in ("/mailings/preview", "/mailings/new"):
        yield Call("POST", route, "every time zone", route, a_form(), FORM)
        filled = a_form(tags=",".join(long_filter["tags"]))
        yield Call("POST", route, "many tags", route, filled, FORM)
        yield Call("POST", route, "256 KiB of commas", route, a_form(tags="," * 80_000), FORM)
        yield Call("POST", route, "a long text", route, a_form(text="Ж" * 40_000), FORM)
        yield Call("POST", route, "a text of braces", route, a_form(text="{" * 80_000), FORM)
    for route in ("/api/v1/clients", "/api/v1/mailings", "/api/v1/audit"):
        yield Call("GET", route, "1,000 rows", f"{route}?limit=1000")
    route = "/api/v1/mailings/{mailing_id:int}/messages"
    yield Call("GET", route, "1,000 rows", f"{target.path(route)}?limit=1000")
    for route in ("/api/v1/clients", "/api/v1/mailings/{mailing_id:int}/messages"):
        yield Call("GET", route, "CSV", target.path(route), headers={"Accept": "text/csv"})
    sent = f"name={NAME}&password={'x' * 1000}&back=%2F".encode()
    yield Call("POST", "/login", "a long password", "/login", sent, FORM)


async def longest(session: aiohttp.ClientSession, mailer: harness.Mailer, call: Call) -> list[Any]:
    """Make a call some times; return the longest block of each."""
    found = []
    for _ in range(TIMES):
        mailer.blocks.clear()
        async with session.request(
            call.method,
            call.path,
            data=call.body,
            headers=call.headers,
            allow_redirects=False,
            skip_auto_headers=["Accept-Encoding"],
        ) as answer:
            if call.is_stream:
                await answer.content.readany()
            else:
                await answer.read()
        await asyncio.sleep(SETTLE)
        found.append(max(mailer.blocks, key=lambda block: block.cpu_seconds, default=None))
    return found


async def prepare(mailer: harness.Mailer, clients: int) -> Target:
    """Fill the database; return what to ask for."""
    zones = await mailer.database.fetchval(ZONES, sorted(known_zones()))
    await mailer.database.execute(ADD_CLIENTS, clients, zones)
    await mailer.database.execute("VACUUM ANALYZE client")
    for _ in range(20):
        await mailer.add_mailing(starts_in=3600, client_filter=filter_of(300, zones))
    sent = await mailer.add_mailing()
    await mailer.finished(sent["id"])
    now = datetime.now(UTC)
    opens = (now + 12 * HOUR).strftime("%H:%M")
    closes = (now + 22 * HOUR).strftime("%H:%M")
    waiting = await mailer.add_mailing(
        datetime_end=(now + 500 * HOUR).isoformat(),
        send_interval_time_start=opens,
        send_interval_time_end=closes,
    )
    async with asyncio.timeout(harness.PATIENCE):
        while await mailer.database.fetchval(TAKEN, waiting["id"]) < clients:  # noqa: ASYNC110  # it happens in another process
            await asyncio.sleep(harness.PAUSE)
    message_id = await mailer.database.fetchval(
        "SELECT max(id) FROM message WHERE mailing_id = $1", waiting["id"]
    )
    return Target(waiting["id"], message_id)


async def sign_in(mailer: harness.Mailer) -> aiohttp.ClientSession:
    """Return a session that everything is open to."""
    engine = create_engine(mailer.database_url)
    new = accounts.NewAccount(name=NAME, role="admin", password=PASSWORD)
    await service.add_account(engine, new, COMMAND_LINE)
    await engine.dispose()
    headers = {**mailer.headers, "Sec-Fetch-Site": "same-origin"}
    jar = aiohttp.CookieJar(unsafe=True)
    session = aiohttp.ClientSession(
        mailer.address, headers=headers, cookie_jar=jar, max_field_size=2**16, max_line_size=2**16
    )
    given = {"name": NAME, "password": PASSWORD, "back": "/"}
    async with session.post("/login", data=given, allow_redirects=False) as answer:
        answer.raise_for_status()
    return session


async def main(clients: int, only: str) -> int:
    """Call every route, watch the jobs, and judge; return the exit status."""
    verdict = harness.Verdict()
    worst: dict[str, tuple[float, str]] = defaultdict(lambda: (0.0, ""))
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, harness.WATCHED, auth="required", key_rate=0) as mailer,
    ):
        target = await prepare(mailer, clients)
        session = await sign_in(mailer)
        async with session:
            for call in calls(target):
                if only not in f"{call.method} {call.route} {call.what}":
                    continue
                found = await longest(session, mailer, call)
                seconds = median(block.cpu_seconds if block else 0.0 for block in found)
                where = max(found, key=lambda b: b.cpu_seconds if b else 0.0)
                place = f"{call.what}{' in ' + where.frames if where else ''}"
                route = f"{call.method} {call.route}"
                worst[route] = max(worst[route], (seconds, place))
                if seconds >= LIMIT:
                    print(f"{seconds * 1e3:6.1f} ms  {route}: {place}", flush=True)
        mailer.blocks.clear()
        mailing = await mailer.add_mailing()
        await mailer.finished(mailing["id"])
        await asyncio.sleep(JOBS)
        by_itself = max(mailer.blocks, key=lambda block: block.cpu_seconds, default=None)
        if by_itself:
            worst["sending and jobs"] = (by_itself.cpu_seconds, by_itself.frames)
    for route, (seconds, place) in sorted(worst.items(), key=lambda item: item[1], reverse=True):
        print(f"{seconds * 1e3:6.1f} ms  {route}: {place.split(' in ')[0]}")
    seconds, route = max((seconds, route) for route, (seconds, _) in worst.items())
    figure = f"longest block {seconds * 1e3:.0f} ms of processor time, {route}"
    verdict.check(figure, limit=f"{LIMIT * 1e3:.0f} ms", holds=seconds < LIMIT)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=20_000)
    parser.add_argument("--only", default="", help="calls whose method, route or kind hold this")
    given = parser.parse_args()
    sys.exit(uvloop.run(main(given.clients, given.only)))
