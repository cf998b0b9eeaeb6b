"""All inputs of the API, read from the application's schema so that new fields are included."""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from sqlalchemy.ext.asyncio import create_async_engine

from mailer.app import create_app

BASE = "/api/v1"
APP = create_app(create_async_engine("postgresql+asyncpg://nowhere/none"))
"""The application, to read its routes and its schema; it is never connected to a database."""
SCHEMA: dict[str, Any] = APP.openapi_schema.to_schema()
"""The OpenAPI schema of the application."""
CLIENT = {"phone": "79160000000"}
MAILING = {
    "datetime_start": "2030-01-01T00:00:00Z",
    "datetime_end": "2031-01-01T00:00:00Z",
    "text": "Hello",
}
WEBHOOK = {
    "name": "shop",
    "url": "https://93.184.216.34/",  # a public address, so that no host is resolved
    "events": ["gateway.up"],
}
REQUIRED: dict[str, dict[str, Any]] = {
    "/clients": CLIENT,
    "/mailings": MAILING,
    "/webhooks": WEBHOOK,
}
"""Valid values of the required fields of a body, by path."""
JSON = "application/json"


class Field(msgspec.Struct, frozen=True):
    """A string field in the body of a request with `method` to `path`."""

    method: str
    path: str
    place: tuple[str, ...]
    """The names of the field and of the objects around it, the outermost first. `*` stands for an
    entry of a list: `("client_filter", "tags", "*")` is each tag of a filter."""

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.name}"

    @property
    def name(self) -> str:
        """The name of the field in error responses."""
        return ".".join(part for part in self.place if part != "*")

    def body(self, value: Any) -> dict[str, Any]:
        """Return a body with `value` in the field, valid in all other fields."""
        for part in reversed(self.place[1:]):
            value = [value] if part == "*" else {part: value}
        required = REQUIRED.get(self.path, {}) if self.method == "POST" else {}
        return {**required, self.place[0]: value}


def _resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema to which a reference leads; any other schema as it is."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return SCHEMA["components"]["schemas"][name] if name else schema


def _places(schema: dict[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the place of every string field of a schema, which itself is at `place`."""
    schema = _resolve(schema)
    for choice in schema.get("anyOf", ()):
        yield from _places(choice, place)
    for name, field in schema.get("properties", {}).items():
        yield from _places(field, (*place, name))
    if "items" in schema:
        yield from _places(schema["items"], (*place, "*"))
    if schema.get("type") == "string" or "enum" in schema:
        yield place


def _operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the method, path and schema of every operation of the API."""
    for path, item in SCHEMA["paths"].items():
        for method, operation in item.items():
            if path.startswith(BASE):
                yield method.upper(), path.removeprefix(BASE), operation


def _body_of(operation: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of an operation's JSON body; None if it takes none."""
    media = operation.get("requestBody", {}).get("content", {}).get(JSON)
    return media["schema"] if media else None


def _fields() -> Iterator[Field]:
    for method, path, operation in _operations():
        if body := _body_of(operation):
            yield from (Field(method, path, place) for place in dict.fromkeys(_places(body)))


def _parameters(where: Literal["path", "query"]) -> Iterator[tuple[str, str, str]]:
    """Yield the method, path and name of every parameter in the path or in the query."""
    for method, path, operation in _operations():
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == where:
                yield method, path, parameter["name"]


FIELDS = list(_fields())
"""All string fields of all bodies."""
WRITES = [(method, path) for method, path, operation in _operations() if _body_of(operation)]
"""Method and path of the routes that take a body."""
CONTROLS = [
    (method, path)
    for method, path, operation in _operations()
    if method == "POST" and "requestBody" not in operation
]
"""Method and path of the routes that take no body, or an empty object."""
QUERIES = [(path, name) for method, path, name in _parameters("query") if method == "GET"]
"""Path and name of every query parameter of routes that read."""
LISTS = list(dict.fromkeys(path for path, _ in QUERIES))
"""Paths of the routes with query parameters."""
WITH_ID = [(method, path) for method, path, _ in _parameters("path")]
"""Method and path of the routes with an id or a name in the path."""
METHODS_OF = {
    path.removeprefix(BASE): {method.upper() for method in item}
    for path, item in SCHEMA["paths"].items()
    if path.startswith(BASE)
}
"""Allowed methods by path."""
