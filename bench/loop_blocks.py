"""The longest block of the event loop under every route, by periodic jobs and hostile headers.

A real process with clients in every time zone, tags by the hundred and mailings in several states
is called on each route with the worst input that a sender may choose: long queries and headers, the
largest bodies, deep and wide JSON, the longest filters and texts. `watched.py` reports each block.
The figure is the processor time of a block, median of three calls. Promised for input whose cost
the sender chooses: 10 ms; a route fails over 50 ms, and when it does not answer. Takes four
minutes.
"""

import argparse
import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from statistics import median
from urllib.parse import quote_plus

import aiohttp
import msgspec
import uvloop
from litestar.routes import HTTPRoute
from sqlalchemy.ext.asyncio import create_async_engine

import harness
from mailer.access import accounts, keys, service
from mailer.access.model import COMMAND_LINE
from mailer.app import create_app
from mailer.client.model import known_zones
from mailer.db.engine import create_engine

PROMISED, LIMIT = 0.01, 0.05
"""Seconds of a block: the promise, and where a route fails."""
TIMES = 3
SETTLE = 0.03
"""Seconds after an answer for its blocks to be reported."""
END_SESSIONS = frozenset({"/logout", "/account/sessions", "/account/password"})
"""Routes after which one signs in anew."""
PATIENCE, GLANCE = 30.0, 1.0
"""Seconds to wait for an answer, and for the first part of a stream, which may have no news."""
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

    @property
    def is_stream(self) -> bool:
        """Whether the answer goes on until the page is closed."""
        return self.method == "GET" and self.route.startswith("/live/")


HEADERS = {
    "many languages": {"Accept-Language": "," * 31_000},
    "languages of many parts": {"Accept-Language": ",".join(["a-b-c-d-e;q=0.1"] * 2_000)},
    "many encodings": {"Accept-Encoding": ",".join(["gzip;q=0.1"] * 2_800)},
    "many types": {"Accept": ",".join(["a/b;q=0.1"] * 3_000)},
    "a type of many parameters": {"Accept": "a/b" + ";a=b" * 7_000},
    "many cookies": {"Cookie": "; ".join(f"a{n}=b" for n in range(3_500))},
    "a cookie of quotes": {"Cookie": 'a="' + '\\"' * 15_000},
    "a cookie of octal escapes": {"Cookie": 'a="' + "\\054" * 5_000 + '"'},
    "many cookies of octal escapes": {"Cookie": "; ".join(['a="' + "\\054" * 200 + '"'] * 30)},
    "many proxies": {"X-Forwarded-For": ",".join(["10.0.0.1"] * 3_300)},
    "many forwarders": {"Forwarded": ",".join(["for=10.0.0.1;proto=https"] * 1_200)},
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
    "JSON of many lists": b'{"text":[' + b"[]," * 340_000 + b"[]]}",
    "JSON of many objects": b'{"text":[' + b"{}," * 340_000 + b"{}]}",
    "JSON of as many values as are read": b'{"text":[' + b"[{}]," * 2_400 + b"1," * 45_000 + b"1]}",
    "JSON of as many fields as are read": b"{"
    + b",".join(b'"a%d":1' % n for n in range(50_000))
    + b"}",
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
    """What paths name: nothing that the benchmark itself needs, since calls change and delete."""

    mailing_id: int
    message_id: int
    account_id: int
    key_id: int
    client_id: int = 1
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
    """Yield the worst calls of every route, deletion last."""
    every = sorted(set(routes()))
    for method, route in every:
        path = target.path(route)
        if method in {"POST", "PATCH"}:
            yield from bodies_of(method, route, path)
        elif method == "GET":
            full = f"{path}?ids={target.mailing_id}" if route == "/live/mailings" else path
            yield Call(method, route, "plain", full)
            for what, query in QUERIES.items():
                yield Call(method, route, what, f"{path}?{query}")
    yield from headers_of(every, target)
    yield from long_calls(target)
    for method, route in every:
        if method == "DELETE":
            yield Call(method, route, "plain", target.path(route))


def bodies_of(method: str, route: str, path: str) -> Iterator[Call]:
    """Yield calls of a route with hostile bodies."""
    is_api = route.startswith("/api/")
    headers = CSV if "import" in route else JSON if is_api else FORM
    for what, body in (JSON_BODIES if is_api else FORM_BODIES).items():
        yield Call(method, route, what, path, body, headers)


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


class Answered(msgspec.Struct, frozen=True):
    """How a route answered the same call some times."""

    status: int
    """Of the last answer; 0 when there was none."""
    seconds: float
    """Processor time of the longest block, median of the calls."""
    frames: str
    """Where the longest of them was."""


async def answered(session: aiohttp.ClientSession, mailer: harness.Mailer, call: Call) -> Answered:
    """Make a call some times."""
    found, status = [], 0
    for _ in range(TIMES):
        mailer.blocks.clear()
        status = await status_of(session, call)
        await asyncio.sleep(SETTLE)
        if call.route in END_SESSIONS:
            await sign_in(session)
        longest = max(mailer.blocks, key=lambda block: block.cpu_seconds, default=None)
        found.append((longest.cpu_seconds, longest.frames) if longest else (0.0, ""))
    return Answered(status, median(seconds for seconds, _ in found), max(found)[1])


async def status_of(session: aiohttp.ClientSession, call: Call) -> int:
    """Make a call; return the status of its answer, 0 of none in time. Raises when signed out."""
    try:
        async with (
            asyncio.timeout(PATIENCE),
            session.request(
                call.method,
                call.path,
                data=call.body,
                headers=call.headers,
                allow_redirects=False,
                skip_auto_headers=["Accept-Encoding"],
            ) as answer,
        ):
            if call.is_stream:
                with suppress(TimeoutError):
                    await asyncio.wait_for(answer.content.readany(), GLANCE)
            else:
                await answer.read()
    except TimeoutError:
        return 0
    leads_to = answer.headers.get("Location", "")
    is_open = call.route in {"/login", *END_SESSIONS} or {"Authorization", "Cookie"} & {
        *call.headers
    }
    if not is_open and (answer.status == HTTPStatus.UNAUTHORIZED or leads_to.startswith("/login")):
        message = f"{call.method} {call.route}: {call.what}: not signed in any more"
        raise RuntimeError(message)
    return answer.status


async def prepare(mailer: harness.Mailer, clients: int) -> Target:
    """Fill the database; return what to ask for."""
    zones = await mailer.database.fetchval(ZONES, sorted(known_zones()))
    await mailer.database.execute(ADD_CLIENTS, clients, zones)
    await mailer.database.execute("VACUUM ANALYZE client")
    for _ in range(60):  # more than a page shows
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
    engine = create_engine(mailer.database_url)
    new = accounts.NewAccount(name="target", role="viewer", password=PASSWORD)
    account = await service.add_account(engine, new, COMMAND_LINE)
    async with engine.begin() as connection:
        key, _ = await keys.add(connection, keys.NewKey(name="target", scope="read"), COMMAND_LINE)
    await engine.dispose()
    return Target(waiting["id"], message_id, account.id, key.id)


@asynccontextmanager
async def signed_in(mailer: harness.Mailer) -> AsyncIterator[aiohttp.ClientSession]:
    """Give a session that everything is open to."""
    engine = create_engine(mailer.database_url)
    new = accounts.NewAccount(name=NAME, role="admin", password=PASSWORD)
    await service.add_account(engine, new, COMMAND_LINE)
    await engine.dispose()
    headers = {**mailer.headers, "Sec-Fetch-Site": "same-origin"}
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(
        mailer.address, headers=headers, cookie_jar=jar, max_field_size=2**16, max_line_size=2**16
    ) as session:
        await sign_in(session)
        yield session


async def sign_in(session: aiohttp.ClientSession) -> None:
    """Begin a session of the pages."""
    given = {"name": NAME, "password": PASSWORD, "back": "/"}
    async with session.post("/login", data=given, allow_redirects=False) as answer:
        answer.raise_for_status()


async def main(clients: int, only: str) -> int:
    """Call every route, watch the jobs, and judge; return the exit status."""
    found: dict[str, dict[str, Answered]] = defaultdict(dict)
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, harness.WATCHED, auth="required", key_rate=0) as mailer,
    ):
        target = await prepare(mailer, clients)
        async with signed_in(mailer) as session:
            for call in calls(target):
                route = f"{call.method} {call.route}"
                if only in f"{route} {call.what}":
                    answer = found[route][call.what] = await answered(session, mailer, call)
                    if is_failed(answer):
                        print(f"{route}: {call.what}: {described(answer)}", flush=True)
        if not only:
            found["sending and jobs"]["by themselves"] = await by_itself(mailer)
    return judge(found)


async def by_itself(mailer: harness.Mailer) -> Answered:
    """Watch sending and the periodic jobs."""
    mailer.blocks.clear()
    mailing = await mailer.add_mailing()
    await mailer.finished(mailing["id"])
    await asyncio.sleep(JOBS)
    longest = max(mailer.blocks, key=lambda block: block.cpu_seconds, default=None)
    return Answered(200, longest.cpu_seconds, longest.frames) if longest else Answered(200, 0, "")


def is_failed(answer: Answered) -> bool:
    """Whether a call was answered too late, by a failure, or with too long a block."""
    is_failure = answer.status == HTTPStatus.INTERNAL_SERVER_ERROR
    return not answer.status or is_failure or answer.seconds > LIMIT


def described(answer: Answered) -> str:
    """Return an answer in words."""
    if not answer.status:
        return f"no answer within {PATIENCE:.0f} s"
    return f"{answer.status}, {answer.seconds * 1e3:.1f} ms in {answer.frames}"


def judge(found: Mapping[str, Mapping[str, Answered]]) -> int:
    """Print a table of the longest block of each route; return the exit status."""
    worst = {
        route: max(answers.items(), key=lambda item: (is_failed(item[1]), item[1].seconds))
        for route, answers in found.items()
    }
    print(f"\n{'longest':>10}  {'limit':9}  status  route: worst input")
    for route, (what, answer) in sorted(worst.items(), key=lambda item: -item[1][1].seconds):
        kept = "FAILED" if is_failed(answer) else "kept" if answer.seconds <= PROMISED else "over"
        where = f" in {answer.frames}" if kept == "over" else ""  # of a failed one it is said above
        figure = f"{answer.seconds * 1e3:7.1f} ms"
        print(f"{figure}  {kept:9}  {answer.status or 'none':6}  {route}: {what}{where}")
    verdict = harness.Verdict()
    over = sum(answer.seconds > PROMISED for _, answer in worst.values())
    failed = sum(is_failed(answer) for _, answer in worst.values())
    print(f"routes: {len(worst)}, {over} with a block over the promised {PROMISED * 1e3:.0f} ms")
    figure = f"routes over {LIMIT * 1e3:.0f} ms or without a good answer: {failed}"
    verdict.check(figure, limit="0", holds=failed == 0)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=20_000)
    parser.add_argument("--only", default="", help="calls whose method, route or kind hold this")
    given = parser.parse_args()
    sys.exit(uvloop.run(main(given.clients, given.only)))
