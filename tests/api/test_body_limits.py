"""Bodies that are too large, or not what their heads say, on real sockets."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from urllib.parse import urlencode

import pytest
from litestar.routes import HTTPRoute
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.sample import OPEN, add_clients, add_mailing
from tests.served import Talk, listening, talk

from mailer.access import accounts, keys, service
from mailer.access.cookie import COOKIE
from mailer.access.model import COMMAND_LINE
from mailer.admin.form import FORM_LIMIT, LONG_LIMIT, MOST_FIELDS, SMALL_LIMIT
from mailer.app import create_app
from mailer.settings import Settings
from mailer.web.body import BODY_LIMIT

UNREAD = {
    *("/account/sessions", "/clients/1/delete", "/keys/1/revoke", "/logout", "/mailings/1/pause"),
    *("/people/1/disable", "/people/1/enable", "/people/1/sign-out"),
}
"""Pages whose buttons say all there is to say by their address: a body is not read."""
LATER = datetime(2040, 1, 1, tzinfo=UTC)
FORM, JSON, CSV = "application/x-www-form-urlencoded", "application/json", "text/csv"

OURS = "Sec-Fetch-Site: same-origin"


@pytest.fixture
async def client(engine: AsyncEngine) -> AsyncIterator[Talk]:
    async with listening(create_app(engine, settings=OPEN)) as port, talk(port) as client:
        yield client


def calls(engine: AsyncEngine) -> list[tuple[str, str, str]]:
    """Return the method, path and type of every call that takes a body of limited size."""
    found: list[tuple[str, str, str]] = []
    for route in create_app(engine, settings=OPEN).routes:
        if isinstance(route, HTTPRoute) and "import" not in route.path:
            path = route.path_format.replace("{verb}", "pause")
            path = re.sub(r"{\w+}", "1", path)
            media_type = JSON if path.startswith("/api/") else FORM
            found += [
                (method, path, media_type)
                for method in route.methods & {"POST", "PATCH", "PUT"}
                if path not in UNREAD
            ]
    return found


async def fill(engine: AsyncEngine) -> list[str]:
    """Let there be one of each, with the id 1; return the headers of who may do everything."""
    await add_clients(engine, 1)
    assert await add_mailing(engine, start=LATER, status="scheduled") == 1
    async with engine.begin() as connection:
        _, key = await keys.add(connection, keys.NewKey(name="k", scope="admin"), COMMAND_LINE)
        ann = await accounts.add(connection, "ann", "admin", "no hash", COMMAND_LINE)
        session = await service.begin(connection, ann, None, "")
    return [f"Authorization: Bearer {key}", f"Cookie: {COOKIE}={session}"]


async def begin(client: Talk, call: tuple[str, str, str], *headers: str) -> None:
    method, path, media_type = call
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Type: {media_type}", OURS, *headers]
    await client.say("\r\n".join([*lines, "", ""]).encode())


async def test_a_body_that_says_it_is_too_large_is_413_at_once_on_every_route(
    engine: AsyncEngine,
) -> None:
    headers = await fill(engine)
    assert len(calls(engine)) > 12
    async with listening(create_app(engine, settings=Settings())) as port:
        for call in calls(engine):
            async with talk(port) as client:
                await begin(client, call, *headers, f"Content-Length: {BODY_LIMIT + 1}")
                assert (await client.problem())[0] == 413, call


async def test_a_body_in_chunks_that_grows_too_large_is_413_on_every_route(
    engine: AsyncEngine,
) -> None:
    headers = await fill(engine)
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    async with listening(create_app(engine, settings=Settings())) as port:
        for call in calls(engine):
            async with talk(port) as client:
                await begin(client, call, *headers, "Transfer-Encoding: chunked")
                for _ in range(BODY_LIMIT // 65_536 + 1):
                    client.writer.write(chunk)
                assert (await client.problem())[0] == 413, call


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: -1",),
        ("Content-Length: 1x",),
        ("Content-Length: 99999999999999999999",),
        ("Content-Length: 2", "Content-Length: 3"),
        ("Content-Length: 2", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked, gzip",),
    ],
    ids=" ".join,
)
async def test_a_length_that_makes_no_sense_is_400(client: Talk, headers: tuple[str, ...]) -> None:
    await begin(client, ("POST", "/api/v1/clients", JSON), *headers)
    assert (await client.problem())[0] == 400
    await client.ended()


async def test_what_comes_beyond_the_length_is_no_part_of_the_body(client: Talk) -> None:
    await begin(client, ("POST", "/api/v1/clients", JSON), "Content-Length: 2")
    await client.say(b'{}"phone": "79161234567"}\r\n\r\n')
    assert (await client.answer())[0] == 400
    await client.ended()


@pytest.mark.parametrize("path", ["/api/v1/clients/import", "/clients/import"])
async def test_an_import_that_says_it_is_too_large_is_413(client: Talk, path: str) -> None:
    await begin(client, ("POST", path, CSV), f"Content-Length: {1024**3 + 1}")
    assert (await client.answer())[0] == 413


async def test_what_cannot_end_is_broken_off(client: Talk) -> None:
    await begin(client, ("POST", "/api/v1/clients", JSON), "Transfer-Encoding: gzip")
    await client.ended()


@pytest.mark.parametrize(
    ("path", "limit"),
    [("/login", SMALL_LIMIT), ("/preferences", SMALL_LIMIT), ("/clients/new", FORM_LIMIT)],
)
async def test_a_form_is_small(client: Talk, path: str, limit: int) -> None:
    await begin(client, ("POST", path, FORM), f"Content-Length: {limit + 1}")
    assert (await client.problem())[0] == 413


async def test_a_form_of_more_fields_than_any_has_is_400_and_not_taken_apart(client: Talk) -> None:
    for count, status in ((MOST_FIELDS, 303), (MOST_FIELDS + 1, 400)):
        body = b"&".join([b"%41=%41"] * count)
        await begin(client, ("POST", "/preferences", FORM), f"Content-Length: {len(body)}")
        await client.say(body)
        assert (await client.answer())[0] == status


async def test_the_longest_text_and_filter_are_no_more_than_a_mailings_form_may_have() -> None:
    longest = "\N{GRINNING FACE}"
    fields = {"text": longest * 1600, "filter": longest * 10_000}
    assert len(urlencode(fields)) < LONG_LIMIT
