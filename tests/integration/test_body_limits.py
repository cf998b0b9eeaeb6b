"""Bodies that are too large, or that do not fit their headers, over real sockets."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import urlencode

import pytest
from litestar.routes import HTTPRoute
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import OPEN, UnusedGateway, add_clients, add_mailing, channel_of, put_on_list
from tests.served import RawConnection, listening, talk

from mailer.access import keys, service, users
from mailer.access.model import COMMAND_LINE
from mailer.admin.form import MAX_FIELDS, MAX_LONG_FORM_BYTES, MAX_SMALL_FORM_BYTES
from mailer.app import create_app
from mailer.gateway.channel import Channels
from mailer.settings import Settings
from mailer.web.body import MAX_BODY_BYTES
from mailer.web.cookie import SESSION_COOKIE

BODYLESS = {
    *("/profile/sessions", "/clients/1/delete", "/keys/1/revoke", "/logout", "/mailings/1/pause"),
    *("/users/1/disable", "/users/1/enable", "/users/1/sign-out"),
    *("/clients/1/opt-in", "/clients/1/opt-out", "/opt-outs/1/delete", "/clients/lists/1/delete"),
    *("/webhooks/1/deliveries/1/redeliver", "/webhooks/1/pause", "/webhooks/1/rotate-secret"),
    *("/profile/notices/test", "/users/1/notices/test"),
    *("/gateways/1/pause", "/gateways/1/resume", "/gateways/1/release-unknown"),
}
"""Routes for POST that do not read a body."""
LATER = datetime(2040, 1, 1, tzinfo=UTC)
CHUNK_BYTES = 65_536
CHUNK = b"%x\r\n%b\r\n" % (CHUNK_BYTES, b" " * CHUNK_BYTES)
"""A part of a body with Transfer-Encoding: chunked. Its length comes first, in hexadecimal."""
MAX_IMPORT_BYTES = 1024**3
FORM, JSON, CSV = "application/x-www-form-urlencoded", "application/json", "text/csv"

SAME_ORIGIN = "Sec-Fetch-Site: same-origin"


class Call(NamedTuple):
    """A request that sends a body of this media type."""

    method: str
    path: str
    media_type: str


CREATE_CLIENT = Call("POST", "/api/v1/clients", JSON)


@pytest.fixture
async def client(engine: AsyncEngine) -> AsyncIterator[RawConnection]:
    """A connection to an application without authentication."""
    async with listening(create_app(engine, settings=OPEN)) as port, talk(port) as client:
        yield client


def calls_with_body(engine: AsyncEngine) -> list[Call]:
    """Return a call of every route that reads a body, except imports, whose limit is larger."""
    calls: list[Call] = []
    for route in create_app(engine, settings=OPEN).routes:
        if isinstance(route, HTTPRoute) and "import" not in route.path:
            path = route.path_format.replace("{verb}", "pause")
            path = re.sub(r"{\w+}", "1", path)  # every object of `create_objects` has the id 1
            media_type = JSON if path.startswith("/api/") else FORM
            calls += [
                Call(method, path, media_type)
                for method in route.methods & {"POST", "PATCH", "PUT"}
                if path not in BODYLESS
            ]
    return calls


def create_gateway_1() -> Channels:
    """Return the channels of a worker with a gateway of this name."""
    return Channels([channel_of(UnusedGateway(), Settings(), name="1")])


async def create_objects(engine: AsyncEngine) -> list[str]:
    """Create one object of each type, with id 1; return headers that authenticate as an admin."""
    await add_clients(engine, 1)
    assert await add_mailing(engine, start=LATER, status="scheduled") == 1
    assert await put_on_list(engine, "vip", []) == 1
    async with engine.begin() as connection:
        _, key = await keys.create(connection, keys.NewKey(name="k", scope="admin"), COMMAND_LINE)
        ann = await users.create(connection, "ann", "admin", "no hash", COMMAND_LINE)
        session = await service.begin_session(connection, ann, None, "")
    return [f"Authorization: Bearer {key}", f"Cookie: {SESSION_COOKIE}={session}"]


async def send_head(client: RawConnection, call: Call, *headers: str) -> None:
    """Send the first line and the headers of a request, without a body."""
    lines = [
        f"{call.method} {call.path} HTTP/1.1",
        "Host: x",
        f"Content-Type: {call.media_type}",
        SAME_ORIGIN,
        *headers,
    ]
    await client.say("\r\n".join([*lines, "", ""]).encode())


async def test_a_body_with_a_too_large_content_length_is_413_on_every_route(
    engine: AsyncEngine,
) -> None:
    credentials = await create_objects(engine)
    calls = calls_with_body(engine)
    assert len(calls) > 12  # the list is not empty by mistake
    async with listening(create_app(engine, create_gateway_1(), settings=Settings())) as port:
        for call in calls:
            async with talk(port) as client:
                too_long = f"Content-Length: {MAX_BODY_BYTES + 1}"
                await send_head(client, call, *credentials, too_long)
                assert (await client.problem()).status == 413, call


async def test_a_chunked_body_that_grows_too_large_is_413_on_every_route(
    engine: AsyncEngine,
) -> None:
    credentials = await create_objects(engine)
    too_many_chunks = MAX_BODY_BYTES // CHUNK_BYTES + 1
    async with listening(create_app(engine, create_gateway_1(), settings=Settings())) as port:
        for call in calls_with_body(engine):
            async with talk(port) as client:
                await send_head(client, call, *credentials, "Transfer-Encoding: chunked")
                for _ in range(too_many_chunks):
                    client.writer.write(CHUNK)
                assert (await client.problem()).status == 413, call


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
async def test_an_invalid_length_is_400(client: RawConnection, headers: tuple[str, ...]) -> None:
    await send_head(client, CREATE_CLIENT, *headers)
    assert (await client.problem()).status == 400
    await client.ended()


async def test_bytes_after_the_content_length_do_not_belong_to_the_body(
    client: RawConnection,
) -> None:
    await send_head(client, CREATE_CLIENT, "Content-Length: 2")
    await client.say(b'{}"phone": "79161234567"}\r\n\r\n')
    assert (await client.answer()).status == 400  # the body is {}: the phone is missing
    await client.ended()  # the rest is no request


@pytest.mark.parametrize("path", ["/api/v1/clients/import", "/clients/import"])
async def test_an_import_with_a_too_large_content_length_is_413(
    client: RawConnection, path: str
) -> None:
    await send_head(client, Call("POST", path, CSV), f"Content-Length: {MAX_IMPORT_BYTES + 1}")
    assert (await client.answer()).status == 413


async def test_a_body_without_a_detectable_end_closes_the_connection(client: RawConnection) -> None:
    await send_head(client, CREATE_CLIENT, "Transfer-Encoding: gzip")
    await client.ended()


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/login", MAX_SMALL_FORM_BYTES),
        ("/preferences", MAX_SMALL_FORM_BYTES),
        ("/clients/new", MAX_LONG_FORM_BYTES),
    ],
)
async def test_a_form_over_its_size_limit_is_413(
    client: RawConnection, path: str, limit: int
) -> None:
    await send_head(client, Call("POST", path, FORM), f"Content-Length: {limit + 1}")
    assert (await client.problem()).status == 413


async def test_a_form_with_too_many_fields_is_400(client: RawConnection) -> None:
    for count, status in ((MAX_FIELDS, 303), (MAX_FIELDS + 1, 400)):
        body = b"&".join([b"%41=%41"] * count)  # the field A with the value A, percent-encoded
        call = Call("POST", "/preferences", FORM)
        await send_head(client, call, f"Content-Length: {len(body)}")
        await client.say(body)
        assert (await client.answer()).status == status


async def test_the_longest_text_and_filter_fit_into_the_form_of_a_mailing() -> None:
    four_byte_character = "\N{GRINNING FACE}"  # twelve bytes in a form
    fields = {"text": four_byte_character * 1600, "filter": four_byte_character * 10_000}
    assert len(urlencode(fields)) < MAX_LONG_FORM_BYTES
