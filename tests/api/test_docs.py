"""The pages of the API documentation and the OpenAPI schema, of a small application."""

import hashlib
import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import pytest
from litestar import Litestar, Router, get, patch, post
from litestar.exceptions import TooManyRequestsException
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.testing import TestClient

from mailer.web import assets
from mailer.web.assets import asset_url, static_router
from mailer.web.openapi import openapi_config

PROBLEM = {"$ref": "#/components/schemas/Problem"}


# ---- the application ------------------------------------------------------------------------


class Address(msgspec.Struct, forbid_unknown_fields=True):
    city: str


class NewExampleUser(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    address: Address | None = None


class ExampleUser(msgspec.Struct):
    id: int
    name: str


@get("/", include_in_schema=False)
async def home() -> str:
    return "home"


@get("/users/{user_id:int}")
async def show(user_id: FromPath[int]) -> ExampleUser:
    """Return one user."""
    return ExampleUser(user_id, "x")


@get("/users", raises=[TooManyRequestsException])
async def index(limit: Annotated[int, QueryParameter(ge=1)] = 100) -> list[ExampleUser]:
    return [ExampleUser(limit, "x")]


@post("/users")
async def add(data: JSONBody[NewExampleUser]) -> ExampleUser:
    return ExampleUser(1, data.name)


@patch("/users/{user_id:int}")
async def change(user_id: FromPath[int], data: JSONBody[NewExampleUser]) -> ExampleUser:
    return ExampleUser(user_id, data.name)


@pytest.fixture(scope="module")
def web() -> Iterator[TestClient[Litestar]]:
    """A client of the application."""
    app = Litestar(
        [home, Router("/api/v1", route_handlers=[show, index, add, change]), static_router()],
        openapi_config=openapi_config(),
        logging_config=None,
    )
    with TestClient(app) as client:
        yield client


@pytest.fixture(scope="module")
def schema(web: TestClient[Litestar]) -> dict[str, Any]:
    content: dict[str, Any] = web.get("/openapi.json").json()
    return content


# ---- pages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/redoc"])
def test_a_page_loads_nothing_from_other_hosts(web: TestClient[Litestar], path: str) -> None:
    page = web.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in page.text  # no URL with a host
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert linked
    for url in linked:
        answer = web.get(url)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_allows_scripts_of_its_own_host_alone(web: TestClient[Litestar], path: str) -> None:
    page = web.get(path)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self';" in policy
    assert "<script>" not in page.text


def test_the_root_and_unknown_paths_are_answered_by_the_application(
    web: TestClient[Litestar],
) -> None:
    assert web.get("/").text == "home"
    unknown = web.get("/unknown")
    assert unknown.status_code == 404
    assert unknown.headers["content-type"].startswith("application/json")


def test_a_static_file_is_served_from_its_folder_alone(web: TestClient[Litestar]) -> None:
    assert web.get("/static/../assets.py").status_code == 404
    assert web.get("/static/%2e%2e/assets.py").status_code == 404
    assert web.get("/static/nothing.js").status_code == 404


def test_the_url_of_an_asset_changes_with_its_content() -> None:
    digest = hashlib.sha256((assets.ASSETS / "docs.js").read_bytes()).hexdigest()
    assert asset_url("docs.js") == f"/static/docs.js?v={digest[:12]}"


# ---- the schema -----------------------------------------------------------------------------


def test_the_schema_is_openapi_3_1(web: TestClient[Litestar], schema: dict[str, Any]) -> None:
    assert web.get("/openapi.json").headers["content-type"] == "application/json"
    assert schema["openapi"].startswith("3.1.")
    assert schema["info"]["version"] == "1"
    assert schema["paths"].keys() == {"/api/v1/users", "/api/v1/users/{user_id}"}


def test_the_schema_of_a_struct_that_forbids_unknown_fields_declares_it(
    schema: dict[str, Any],
) -> None:
    models = schema["components"]["schemas"]
    assert models["NewExampleUser"]["additionalProperties"] is False
    assert models["Address"]["additionalProperties"] is False
    assert "additionalProperties" not in models["ExampleUser"]


@pytest.mark.parametrize(
    ("path", "method", "statuses"),
    [
        ("/api/v1/users", "get", {"400", "429", "503"}),
        ("/api/v1/users", "post", {"400", "408", "409", "413", "415", "503"}),
        ("/api/v1/users/{user_id}", "get", {"400", "404", "503"}),
        ("/api/v1/users/{user_id}", "patch", {"400", "404", "408", "409", "413", "415", "503"}),
    ],
)
def test_each_route_declares_its_problems(
    schema: dict[str, Any], path: str, method: str, statuses: set[str]
) -> None:
    responses = schema["paths"][path][method]["responses"]
    assert {status for status in responses if status >= "400"} == statuses
    for status in statuses:
        response = responses[status]
        if "$ref" in response:
            name = response["$ref"].rpartition("/")[2]
            response = schema["components"]["responses"][name]
        assert response["description"]
        assert response["content"].keys() == {"application/problem+json"}
        assert response["content"]["application/problem+json"]["schema"] == PROBLEM


def test_a_problem_lists_every_invalid_field(schema: dict[str, Any]) -> None:
    models = schema["components"]["schemas"]
    assert models["Problem"]["required"] == ["type", "title", "status", "detail"]
    assert models["Problem"]["properties"]["errors"]["items"] == {
        "$ref": "#/components/schemas/FieldError"
    }
    assert models["FieldError"]["properties"].keys() == {"field", "message"}
