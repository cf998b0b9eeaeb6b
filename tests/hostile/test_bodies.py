"""Invalid bodies are refused and leave no trace."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.hostile.surface import CONTROLS, WRITES
from tests.hostile.trace import assert_is_problem, wrong_fields

JSON = {"Content-Type": "application/json"}
WITH_A_BODY = [*WRITES, *CONTROLS]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        b" ",
        b"x",
        b"null",
        b"[]",
        b"[{}]",
        b"1",
        b'"text"',
        b"true",
        b"NaN",
        b"{",
        b"{} {}",
        b"{'phone': 1}",
        b'{"phone": 1,}',
        b'// comment\n{"phone": 1}',
        b"\xef\xbb\xbf{}",
        '{"phone": "79160000000"}'.encode("utf-16"),
        b"\x00",
        b"phone=79160000000",
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"tag":' * 100_000 + b"1" + b"}" * 100_000, id="deep objects"),
        pytest.param(b'{"tag":' + b"[" * 400 + b"]" * 400 + b"}", id="deep value"),
        pytest.param(b'{"client_filter":' * 400 + b"{}" + b"}" * 400, id="deep filter"),
        pytest.param(b'{"phone":' + b"9" * 10_000 + b"}", id="long number"),
        pytest.param(b'{"x":"' + b"a" * 1_000_000 + b'"}', id="megabyte"),
    ],
)
@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.usefixtures("unchanged")
async def test_a_body_that_is_not_a_valid_json_object_is_refused(
    api: httpx.AsyncClient, ids: dict[str, int | str], method: str, path: str, body: bytes
) -> None:
    response = await api.request(method, path.format(**ids), content=body, headers=JSON)
    assert_is_problem(response, 400)


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.usefixtures("unchanged")
async def test_the_error_for_an_empty_body_does_not_name_the_handlers_parameter(
    api: httpx.AsyncClient, ids: dict[str, int | str], method: str, path: str
) -> None:
    response = await api.request(method, path.format(**ids), headers=JSON)
    assert_is_problem(response, 400)
    assert "'data'" not in response.text


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "garbage",
        "text/plain",
        "text/json",
        "application/xml",
        "application/msgpack",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
    ],
)
@pytest.mark.parametrize(("method", "path"), WITH_A_BODY)
@pytest.mark.usefixtures("unchanged")
async def test_a_body_of_another_type_is_415(
    api: httpx.AsyncClient,
    ids: dict[str, int | str],
    method: str,
    path: str,
    content_type: str | None,
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = await api.request(
        method, path.format(**ids), content=b'{"text": "changed"}', headers=headers
    )
    assert_is_problem(response, 415)


@pytest.mark.parametrize("content_type", ["APPLICATION/JSON", "application/json; charset=utf-8"])
@pytest.mark.usefixtures("unchanged")
async def test_case_and_parameters_of_a_content_type_are_ignored(
    api: httpx.AsyncClient, content_type: str
) -> None:
    headers = {"Content-Type": content_type}
    response = await api.post("/clients", content=b'{"phone": "x"}', headers=headers)
    assert wrong_fields(response) == {"phone"}


async def ten_megabytes() -> AsyncIterator[bytes]:
    yield b'{"text": "'
    for _ in range(10):
        yield b"x" * 1_000_000
    yield b'"}'


@pytest.mark.parametrize("has_content_length", [True, False])
@pytest.mark.parametrize(("method", "path"), WITH_A_BODY)
@pytest.mark.usefixtures("unchanged")
async def test_a_body_of_ten_megabytes_is_413(
    api: httpx.AsyncClient,
    ids: dict[str, int | str],
    method: str,
    path: str,
    has_content_length: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    content: Any = b"".join([chunk async for chunk in ten_megabytes()])
    response = await api.request(
        method,
        path.format(**ids),
        content=content if has_content_length else ten_megabytes(),
        headers=JSON,
    )
    assert_is_problem(response, 413)


@pytest.mark.parametrize("path", ["/clients", "/mailings"])
@pytest.mark.usefixtures("unchanged")
async def test_the_body_of_a_get_request_is_ignored(api: httpx.AsyncClient, path: str) -> None:
    response = await api.request("GET", path, content=b'{"phone": "\xff"}', headers=JSON)
    assert response.status_code == 200
