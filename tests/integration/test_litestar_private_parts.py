"""The private parts of Litestar that mailer uses are as it expects (decision 14).

The name of a test says what the library does. When one of these tests fails after an upgrade:
compare the part in the library's two versions, adapt `web/litestar_internals.py`,
and then change the test and the version's cap.
"""

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from litestar import Litestar, get, post
from litestar.dto import AbstractDTO
from litestar.params import JSONBody
from litestar.response import Stream
from litestar.response.base import ASGIResponse
from litestar.testing import TestClient
from tests.private_parts import parameters

from mailer.validation import Input
from mailer.web.body import JsonBody
from mailer.web.docs import docs_plugins, docs_router
from mailer.web.litestar_internals import CATCH_ALL_PATHS, close_after
from mailer.web.openapi import openapi_config

SIGNATURES: list[tuple[Callable[..., Any], str]] = [
    (AbstractDTO.decode_bytes, "self, value"),
    (AbstractDTO.create_for_field_definition, "field_definition, handler_id, backend_cls=None"),
    (AbstractDTO.create_openapi_schema, "field_definition, handler_id, schema_creator"),
    (AbstractDTO.generate_field_definitions, "model_type"),
    (AbstractDTO.detect_nested_field, "field_definition"),
]


@pytest.mark.parametrize(("part", "expected"), SIGNATURES)
def test_a_part_has_the_expected_parameters(part: Callable[..., Any], expected: str) -> None:
    assert parameters(part) == expected


class NewThing(Input, frozen=True):
    name: str


@post("/things", dto=JsonBody, return_dto=None)
async def create_thing(data: JSONBody[NewThing]) -> str:
    return data.name


ended: list[str] = []
"""Grows when a response of `/stream` has ended."""


@get("/stream")
async def stream() -> Stream:
    return StreamWithEnd(iter([b"1"]))


class StreamWithEnd(Stream):
    """A stream that notes its end in `ended`."""

    def to_asgi_response(self, *args: Any, **options: Any) -> ASGIResponse:
        stack = AsyncExitStack()
        stack.callback(ended.append, "stream")
        return close_after(super().to_asgi_response(*args, **options), stack)


@pytest.fixture(scope="module")
def web() -> Iterator[TestClient[Litestar]]:
    app = Litestar([create_thing, stream], openapi_config=openapi_config(), logging_config=None)
    with TestClient(app) as client:
        yield client


def test_litestar_decodes_a_body_by_the_dto_alone(web: TestClient[Litestar]) -> None:
    answer = web.post("/things", json={"name": "one"})
    assert (answer.status_code, answer.text) == (201, "one")


def test_litestar_takes_the_schema_of_a_body_from_the_dto(web: TestClient[Litestar]) -> None:
    schema = web.get("/openapi.json").json()
    body = schema["paths"]["/things"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/NewThing"}


def test_litestar_only_calls_the_response_that_it_is_given(web: TestClient[Litestar]) -> None:
    ended.clear()
    assert web.get("/stream").content == b"1"
    assert ended == ["stream"]


def test_litestar_registers_its_catch_all_pages_on_the_router_of_the_documentation() -> None:
    registered: set[str] = set()

    class RecordingRouter(type(docs_router())):  # type: ignore[misc]  # the router's own class
        def register(self, value: Any) -> list[Any]:
            registered.update(value.paths)
            return super().register(value)  # type: ignore[no-any-return]

    config = openapi_config()
    config.openapi_router = RecordingRouter(path="/", route_handlers=[])
    app = Litestar([], openapi_config=config, logging_config=None)
    pages = {path for plugin in docs_plugins() for path in plugin.paths}
    served = {route.path for route in app.routes}
    assert registered == pages | CATCH_ALL_PATHS
    assert pages <= served
    assert not CATCH_ALL_PATHS & served
