"""Measure for how long each route and each periodic job blocks the event loop.

mailer runs on one event loop: a step that takes long delays all other requests and the sending. The
benchmark calls each route with the worst input that a caller may choose: long queries and headers,
the largest bodies, deep and wide JSON, the longest filters and texts. The real process has
clients in every time zone, a thousand tags, and mailings in several states. `serve_monitored.py`
reports each block.

The figure of a call is the processor time of its longest block, as the median of three calls.
mailer promises 10 ms for such input. The benchmark fails for a route with a block over 50 ms, with
an answer 500, or without an answer within 30 s. Takes four minutes.
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
from typing import NamedTuple
from urllib.parse import quote_plus

import aiohttp
import msgspec
import uvloop
from litestar.routes import HTTPRoute
from sqlalchemy.ext.asyncio import create_async_engine

import harness
from mailer.access import keys, service, users
from mailer.access.model import COMMAND_LINE
from mailer.app import create_app
from mailer.client.model import known_zones
from mailer.db.engine import create_engine
from mailer.sample_data import ALL_OPERATOR_CODES, create_clients, new_mailing

PROMISED_BLOCK = 0.01
"""Seconds of the longest block that mailer promises; the benchmark prints what exceeds it."""
MAX_BLOCK = 0.05
"""Seconds of the longest block with which the benchmark succeeds."""
TIMES = 3
"""How often each call is made."""
SETTLE = 0.03
"""Seconds to wait after a response until its blocks are reported."""
SESSION_ENDING_ROUTES = frozenset({"/logout", "/profile/sessions", "/profile/password"})
"""Routes that end the session; the benchmark signs in again after them."""
RESPONSE_TIMEOUT = 30.0
"""Seconds to wait for a response."""
STREAM_TIMEOUT = 1.0
"""Seconds to wait for the first event of a stream, which may have none."""
JOBS_SECONDS = 25.0
"""Seconds to watch the periodic jobs."""
HOUR = timedelta(hours=1)
NAME, PASSWORD = "bench", "a pass phrase of a benchmark"
"""The admin who calls the pages."""
KIB, MIB = 1024, 1024 * 1024

TAGS = tuple(f"tag {number}" for number in range(1000))
COUNT_ENQUEUED = """
    SELECT scheduled + sending + delivered + undelivered FROM mailing_counts
    WHERE mailing_id = $1"""
SELECT_ZONES = "SELECT array_agg(name) FROM pg_timezone_names WHERE name = ANY($1)"
"""Returns those of the given time zones that PostgreSQL also knows."""


class Call(msgspec.Struct, frozen=True):
    """A request, and the route that answers it."""

    method: str
    route: str
    """The path template of the route, such as `/mailings/{mailing_id:int}`."""
    input: str
    """Name of the hostile input; `plain` if the input is ordinary."""
    path: str
    """The path of the request, with its query."""
    body: bytes | None = None
    headers: dict[str, str] = {}

    @property
    def is_stream(self) -> bool:
        """Whether the response is a stream of events without an end."""
        return self.method == "GET" and self.route.startswith("/live/")


# Hostile inputs by name. Most are a little smaller than mailer's limit for them, so that mailer
# processes them; a few are larger.
HEADERS = {
    "many languages": {"Accept-Language": "," * 31_000},
    "languages of many parts": {"Accept-Language": ",".join(["a-b-c-d-e;q=0.1"] * 2_000)},
    "many encodings": {"Accept-Encoding": ",".join(["gzip;q=0.1"] * 2_800)},
    "many media types": {"Accept": ",".join(["a/b;q=0.1"] * 3_000)},
    "a media type of many parameters": {"Accept": "a/b" + ";a=b" * 7_000},
    "many cookies": {"Cookie": "; ".join(f"a{n}=b" for n in range(3_500))},
    "a cookie of quotes": {"Cookie": 'a="' + '\\"' * 15_000},
    "a cookie of octal escapes": {"Cookie": 'a="' + "\\054" * 5_000 + '"'},
    "many cookies of octal escapes": {"Cookie": "; ".join(['a="' + "\\054" * 200 + '"'] * 30)},
    "many proxies": {"X-Forwarded-For": ",".join(["10.0.0.1"] * 3_300)},
    "many forwarders": {"Forwarded": ",".join(["for=10.0.0.1;proto=https"] * 1_200)},
    "many schemes": {"X-Forwarded-Proto": ",".join(["https"] * 5_000)},
    "a content type of many parameters": {"Content-Type": "a/b" + ";a=b" * 7_000},
    "a content type of quotes": {"Content-Type": 'a/b; a="' + '\\"' * 15_000},
    "a long bearer token": {"Authorization": "Bearer " + "a" * 31_000},
    "many ranges": {"Range": "bytes=" + ",".join(["0-1"] * 7_500)},
    "many entity tags": {"If-None-Match": ",".join(['"a"'] * 7_500)},
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
    "deep and complete JSON": b'{"a":' * 1000 + b"1" + b"}" * 1000,
    "JSON of many fields": b"{" + b",".join(b'"a%d":1' % n for n in range(90_000)) + b"}",
    "JSON of many lists": b'{"text":[' + b"[]," * 340_000 + b"[]]}",
    "JSON of many objects": b'{"text":[' + b"{}," * 340_000 + b"{}]}",
    "JSON of the most values allowed": b'{"text":[' + b"[{}]," * 2_400 + b"1," * 45_000 + b"1]}",
    "JSON of the most fields allowed": b"{"
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


def create_filter(entries: int, zones: list[str]) -> dict[str, list[str]]:
    """Return a filter with up to `entries` operator codes, tags and time zones each."""
    return {
        "operator_codes": [f"{n:03}" for n in range(entries)][:1000],
        "tags": [f"tag {n} {'x' * 50}" for n in range(entries)],
        "time_zones": zones[:entries],
    }


def mailing_values(**fields: object) -> dict[str, object]:
    """Return a mailing that starts tomorrow; `fields` override its fields."""
    window = {"send_interval_time_start": "09:00", "send_interval_time_end": "21:00"}
    day = 24 * HOUR.total_seconds()
    return new_mailing(starts_in=day, lasts=50 * day) | window | fields


def create_form(**fields: str) -> bytes:
    """Return the encoded form of a mailing that starts tomorrow; `fields` override its fields."""
    start = datetime.now(UTC) + 24 * HOUR
    values = {
        "text": "Ж" * 1600,
        "start": start.strftime("%Y-%m-%dT%H:%M"),
        "end": (start + 50 * 24 * HOUR).strftime("%Y-%m-%dT%H:%M"),
        "opens": "09:00",
        "closes": "21:00",
        "on_unknown": "retry",
        "time_zone": "UTC",
    } | fields
    return "&".join(f"{name}={quote_plus(value)}" for name, value in values.items()).encode()


FORM_HEADERS = {"Content-Type": "application/x-www-form-urlencoded"}
JSON_HEADERS = {"Content-Type": "application/json"}
CSV_HEADERS = {"Content-Type": "text/csv"}


class Target(msgspec.Struct, frozen=True):
    """Objects for the paths of routes, such as the mailing for `/mailings/{mailing_id:int}`.

    Calls change and delete them, so nothing else in the benchmark uses them.
    """

    mailing_id: int
    message_id: int
    user_id: int
    key_id: int
    client_id: int = 1
    verb: str = "pause"
    """The action of `/mailings/{mailing_id}/{verb}`."""
    file_path: str = "docs.js"
    """The file of `/static/{file_path}`."""

    def path(self, route: str) -> str:
        """Return the path of a route, with the ids and names of this target."""
        for type_name in ("int", "str", "path"):
            route = route.replace(f":{type_name}}}", "}")
        return route.format(**msgspec.structs.asdict(self)).replace("//", "/")


def routes() -> Iterator[tuple[str, str]]:
    """Yield the method and the path template of every route of mailer."""
    app = create_app(create_async_engine("postgresql+asyncpg://nowhere/none"))
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            yield from ((method, route.path) for method in route.route_handler_map)


def calls(target: Target) -> Iterator[Call]:
    """Yield the worst calls of every route; calls that delete come last."""
    all_routes = sorted(set(routes()))
    for method, route in all_routes:
        path = target.path(route)
        if method in {"POST", "PATCH"}:
            yield from calls_with_bodies(method, route, path)
        elif method == "GET":
            needs_ids = route == "/live/mailings"
            plain_path = f"{path}?ids={target.mailing_id}" if needs_ids else path
            yield Call(method, route, "plain", plain_path)
            for name, query in QUERIES.items():
                yield Call(method, route, name, f"{path}?{query}")
    yield from calls_with_headers(target)
    yield from (
        Call(method, route, "plain", target.path(route))
        for method, route in all_routes
        if method not in {"GET", "POST", "PATCH", "DELETE"}
    )
    yield from large_calls(target)
    for method, route in all_routes:
        if method == "DELETE":
            yield Call(method, route, "plain", target.path(route))


def calls_with_bodies(method: str, route: str, path: str) -> Iterator[Call]:
    """Yield calls of a route with hostile bodies."""
    is_api = route.startswith("/api/")
    headers = CSV_HEADERS if "import" in route else JSON_HEADERS if is_api else FORM_HEADERS
    for name, body in (JSON_BODIES if is_api else FORM_BODIES).items():
        yield Call(method, route, name, path, body, headers)


def calls_with_headers(target: Target) -> Iterator[Call]:
    """Yield calls with hostile headers, to one route each of the API, the pages and the rest."""
    for route in ("/api/v1/clients", "/clients", "/login", "/health/live", "/docs", "/nowhere"):
        for name, headers in HEADERS.items():
            yield Call("GET", route, name, target.path(route), headers=headers)


def large_calls(target: Target) -> Iterator[Call]:
    """Yield calls with the largest input and output that mailer accepts, and a little more."""
    long_filter = create_filter(1000, ["Europe/Moscow", "Asia/Omsk"] * 500)
    yield mailing_call("the longest filter", client_filter=long_filter, text="Ж" * 1600)
    terms = ",".join(f"tag {n}" for n in range(1000))
    yield mailing_call("a filter of terms", client_filter=terms)
    yield mailing_call("a filter of commas", client_filter="," * 900_000)
    for field in ("tags", "time_zones", "operator_codes"):
        yield mailing_call(f"200,000 {field}", client_filter={field: ["a"] * 200_000})
    for route in ("/mailings/preview", "/mailings/new"):
        yield form_call(route, "every time zone")
        yield form_call(route, "many tags", tags=",".join(long_filter["tags"]))
        yield form_call(route, "256 KiB of commas", tags="," * 80_000)
        yield form_call(route, "a long text", text="Ж" * 40_000)
        yield form_call(route, "a text of braces", text="{" * 80_000)
    for route in ("/api/v1/clients", "/api/v1/mailings", "/api/v1/audit"):
        yield Call("GET", route, "1,000 rows", f"{route}?limit=1000")
    route = "/api/v1/mailings/{mailing_id:int}/messages"
    yield Call("GET", route, "1,000 rows", f"{target.path(route)}?limit=1000")
    for route in ("/api/v1/clients", "/api/v1/mailings/{mailing_id:int}/messages"):
        yield Call("GET", route, "CSV", target.path(route), headers={"Accept": "text/csv"})
    form = f"name={NAME}&password={'x' * 1000}&return_path=%2F".encode()
    yield Call("POST", "/login", "a long password", "/login", form, FORM_HEADERS)


def mailing_call(name: str, **fields: object) -> Call:
    """Return a call of the API that creates a mailing; `fields` override its fields."""
    body = msgspec.json.encode(mailing_values(**fields))
    return Call("POST", "/api/v1/mailings", name, "/api/v1/mailings", body, JSON_HEADERS)


def form_call(route: str, name: str, **fields: str) -> Call:
    """Return a call that sends the form of a mailing; `fields` override its fields."""
    return Call("POST", route, name, route, create_form(**fields), FORM_HEADERS)


class CallResult(msgspec.Struct, frozen=True):
    """Result of making the same call several times."""

    status: int
    """Status of the last response; 0 when there was none in time."""
    seconds: float
    """Processor seconds of the longest block, median of the calls."""
    frames: str
    """Stack frames of the longest block of all calls."""


async def measure(session: aiohttp.ClientSession, mailer: harness.Mailer, call: Call) -> CallResult:
    """Make a call several times and measure the longest block of each time."""
    longest_blocks, status = [], 0
    for _ in range(TIMES):
        mailer.blocks.clear()
        status = await send_call(session, call)
        await asyncio.sleep(SETTLE)
        if call.route in SESSION_ENDING_ROUTES:
            await sign_in(session)
        longest_blocks.append(longest_block(mailer))
    seconds = median(block.cpu_seconds for block in longest_blocks)
    return CallResult(status, seconds, frames=max(longest_blocks).frames)


class InputResult(NamedTuple):
    """The result of the calls of a route with one input."""

    input: str
    result: CallResult


class LongestBlock(NamedTuple):
    """The longest block of an interval; no seconds and no frames if there was no block."""

    cpu_seconds: float = 0.0
    frames: str = ""


def longest_block(mailer: harness.Mailer) -> LongestBlock:
    """Return the longest of the blocks that mailer has reported since the list was cleared."""
    return max(
        (LongestBlock(block.cpu_seconds, block.frames) for block in mailer.blocks),
        default=LongestBlock(),
    )


async def send_call(session: aiohttp.ClientSession, call: Call) -> int:
    """Send a call; return the status of the response, or 0 when there is none in time.

    Raises `RuntimeError` when the response shows that nobody is signed in any more: the routes
    would then refuse all further calls.
    """
    try:
        async with (
            asyncio.timeout(RESPONSE_TIMEOUT),
            session.request(
                call.method,
                call.path,
                data=call.body,
                headers=call.headers,
                allow_redirects=False,
                skip_auto_headers=["Accept-Encoding"],
            ) as response,
        ):
            if call.is_stream:
                with suppress(TimeoutError):
                    await asyncio.wait_for(response.content.readany(), STREAM_TIMEOUT)
            else:
                await response.read()
    except TimeoutError:
        return 0
    location = response.headers.get("Location", "")
    has_own_credentials = not call.headers.keys().isdisjoint({"Authorization", "Cookie"})
    ends_session = call.route in {"/login", *SESSION_ENDING_ROUTES}
    is_signed_out = response.status == HTTPStatus.UNAUTHORIZED or location.startswith("/login")
    if is_signed_out and not (has_own_credentials or ends_session):
        message = f"{call.method} {call.route}: {call.input}: the session has ended"
        raise RuntimeError(message)
    return response.status


async def prepare(mailer: harness.Mailer, clients: int) -> Target:
    """Create clients, mailings, a user and a key; return the objects for the paths of routes."""
    zones = await mailer.database.fetchval(SELECT_ZONES, sorted(known_zones()))
    await create_clients(
        mailer.database, clients, operator_codes=ALL_OPERATOR_CODES, tags=TAGS, time_zones=zones
    )
    await mailer.database.execute("VACUUM ANALYZE client")
    for _ in range(60):  # more mailings than one page of the list shows
        await mailer.create_mailing(starts_in=3600, client_filter=create_filter(300, zones))
    sent = await mailer.create_mailing()
    await mailer.wait_until_finished(sent["id"])
    now = datetime.now(UTC)
    opens = (now + 12 * HOUR).strftime("%H:%M")
    closes = (now + 22 * HOUR).strftime("%H:%M")
    waiting = await mailer.create_mailing(
        datetime_end=(now + 500 * HOUR).isoformat(),
        send_interval_time_start=opens,
        send_interval_time_end=closes,
    )
    async with asyncio.timeout(harness.PROCESS_TIMEOUT):
        while await mailer.database.fetchval(COUNT_ENQUEUED, waiting["id"]) < clients:  # noqa: ASYNC110  # another process changes it
            await asyncio.sleep(harness.POLL_INTERVAL)
    message_id = await mailer.database.fetchval(
        "SELECT max(id) FROM message WHERE mailing_id = $1", waiting["id"]
    )
    engine = create_engine(mailer.database_url)
    new = users.NewUser(name="target", role="viewer", password=PASSWORD)
    user = await service.create_user(engine, new, COMMAND_LINE)
    async with engine.begin() as connection:
        key, _ = await keys.create(
            connection, keys.NewKey(name="target", scope="read"), COMMAND_LINE
        )
    await engine.dispose()
    return Target(waiting["id"], message_id, user.id, key.id)


@asynccontextmanager
async def signed_in(mailer: harness.Mailer) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a session that is signed in as admin and sends an admin API key."""
    engine = create_engine(mailer.database_url)
    new = users.NewUser(name=NAME, role="admin", password=PASSWORD)
    await service.create_user(engine, new, COMMAND_LINE)
    await engine.dispose()
    headers = {**mailer.headers, "Sec-Fetch-Site": "same-origin"}
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(
        mailer.address, headers=headers, cookie_jar=jar, max_field_size=2**16, max_line_size=2**16
    ) as session:
        await sign_in(session)
        yield session


async def sign_in(session: aiohttp.ClientSession) -> None:
    """Sign in to the admin pages."""
    form = {"name": NAME, "password": PASSWORD, "return_path": "/"}
    async with session.post("/login", data=form, allow_redirects=False) as response:
        response.raise_for_status()


async def main(clients: int, only: str) -> int:
    """Call every route, watch the periodic jobs, check the limits; return the exit status."""
    results: dict[str, dict[str, CallResult]] = defaultdict(dict)
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, harness.SERVE_MONITORED, auth="required", key_rate=0) as mailer,
    ):
        target = await prepare(mailer, clients)
        async with signed_in(mailer) as session:
            for call in calls(target):
                route = f"{call.method} {call.route}"
                if only in f"{route} {call.input}":
                    result = results[route][call.input] = await measure(session, mailer, call)
                    if is_failed(result):
                        print(f"{route}: {call.input}: {describe(result)}", flush=True)
        if not only:
            results["sending and periodic jobs"]["no call"] = await measure_jobs(mailer)
    return check_limits(results)


async def measure_jobs(mailer: harness.Mailer) -> CallResult:
    """Measure the longest block while mailer sends a mailing and runs its periodic jobs."""
    mailer.blocks.clear()
    mailing = await mailer.create_mailing()
    await mailer.wait_until_finished(mailing["id"])
    await asyncio.sleep(JOBS_SECONDS)
    longest = longest_block(mailer)
    return CallResult(HTTPStatus.OK, longest.cpu_seconds, longest.frames)


def is_failed(result: CallResult) -> bool:
    """Return whether a call got no response in time or a 500, or blocked the loop for too long."""
    is_error = result.status == HTTPStatus.INTERNAL_SERVER_ERROR
    return not result.status or is_error or result.seconds > MAX_BLOCK


def describe(result: CallResult) -> str:
    """Return a result in words."""
    if not result.status:
        return f"no response within {RESPONSE_TIMEOUT:.0f} s"
    return f"{result.status}, {result.seconds * 1e3:.1f} ms in {result.frames}"


def check_limits(results: Mapping[str, Mapping[str, CallResult]]) -> int:
    """Print a table of the longest block of each route; return the exit status."""
    worst_inputs = {
        route: max(
            (InputResult(name, result) for name, result in by_input.items()),
            key=lambda each: (is_failed(each.result), each.result.seconds),
        )
        for route, by_input in results.items()
    }
    by_seconds = sorted(
        worst_inputs.items(), key=lambda route_and_worst: -route_and_worst[1].result.seconds
    )
    print(f"\n{'longest':>10}  {'promise':9}  status  route: worst input")
    for route, (name, result) in by_seconds:
        is_kept = result.seconds <= PROMISED_BLOCK
        mark = "FAILED" if is_failed(result) else "kept" if is_kept else "broken"
        frames = f" in {result.frames}" if mark == "broken" else ""  # printed above if it failed
        figure = f"{result.seconds * 1e3:7.1f} ms"
        print(f"{figure}  {mark:9}  {result.status or 'none':6}  {route}: {name}{frames}")
    verdict = harness.Verdict()
    broken = sum(worst.result.seconds > PROMISED_BLOCK for worst in worst_inputs.values())
    failed = sum(is_failed(worst.result) for worst in worst_inputs.values())
    promise = f"{PROMISED_BLOCK * 1e3:.0f} ms"
    print(f"routes: {len(worst_inputs)}, {broken} with a block over the promised {promise}")
    figure = f"routes with a block over {MAX_BLOCK * 1e3:.0f} ms, a 500 or no response: {failed}"
    verdict.check(figure, limit="0", holds=failed == 0)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=20_000)
    only_help = "only calls whose method, route or name of the input contains this text"
    parser.add_argument("--only", default="", help=only_help)
    args = parser.parse_args()
    sys.exit(uvloop.run(main(args.clients, args.only)))
