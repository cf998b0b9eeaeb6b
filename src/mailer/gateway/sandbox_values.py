"""Values of a request by their places, as a profile expects them and as a request contains them.

Path, query, headers and body all become one flat mapping, so that one comparison checks them.
"""

import base64
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from mailer.gateway.profile import RequestPart
from mailer.gateway.request_template import CONTENT_TYPES
from mailer.json_input import read_json

DEFAULT_PATH = "/send/"
"""Path of the sandbox's address, if the profile adds only a message id to it."""

Place = tuple[str | int, ...]
"""Such as `("query", "to")` or `("body", "messages", 0, "sender")`."""


class HttpRequest(msgspec.Struct, frozen=True, gc=False):
    """A request as it was received."""

    method: str
    target: str
    """Path and query, with escapes."""
    headers: Mapping[str, str]
    """Their names are case-insensitive."""
    body: bytes


def base_path(part: RequestPart) -> str:
    """Return the path of the sandbox's address, to which a profile adds its own."""
    return "" if part.url.startswith("{url}/") else DEFAULT_PATH


def expected_values(part: RequestPart) -> dict[Place, object]:
    """Return the values that a profile describes; the texts have placeholders."""
    values: dict[Place, object] = dict(_path_values(base_path(part) + part.url[len("{url}") :]))
    values |= {("query", name): text for name, text in part.query.items()}
    if part.body in CONTENT_TYPES:
        values["header", "content-type"] = CONTENT_TYPES[part.body]
    values |= {("header", name.lower()): text for name, text in part.headers.items()}
    if part.basic_auth is not None:
        values["user",] = part.basic_auth.username
        values["password",] = part.basic_auth.password
    if part.body != "none":
        values |= _nested_values(part.fields, ("body",))
    return values


def received_values(
    request: HttpRequest, part: RequestPart, header_names: Collection[str]
) -> dict[Place, object]:
    """Return the values of a request, as far as a profile can describe them.

    Of the headers, those in `header_names`. Raises `ValueError` for a request that cannot be read.
    """
    path, _, query = request.target.partition("?")
    values: dict[Place, object] = dict(_path_values(path))
    values |= _pair_values(query, "query")
    for name in header_names:
        if name in request.headers:
            values["header", name] = request.headers[name]
    if part.basic_auth is not None:
        values |= _basic_values(request.headers.get("Authorization", ""))
    if part.body == "json":
        document = read_json(request.body, Any, limit=len(request.body))
        values |= _nested_values(document, ("body",))
    elif part.body == "form":
        values |= _pair_values(request.body.decode(), "body")
    elif request.body:
        values["body",] = request.body
    return values


def _path_values(path: str) -> Iterator[tuple[Place, str]]:
    """Yield the steps of a path."""
    for position, step in enumerate(path.split("/")):
        yield ("path", position), unquote(step, errors="strict")


def _pair_values(text: str, kind: str) -> dict[Place, object]:
    """Return the pairs of a query or a form. Raises `ValueError` for a name that is there twice."""
    if not text:
        return {}
    pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict")
    values: dict[Place, object] = {(kind, name): value for name, value in pairs}
    if len(values) < len(pairs):
        raise ValueError("has a name twice")
    return values


def _basic_values(header: str) -> dict[Place, object]:
    """Return user and password of HTTP Basic authentication, if a header has them."""
    scheme, _, encoded = header.partition(" ")
    if scheme != "Basic":
        return {}
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:
        return {}
    return {("user",): user, ("password",): password}


def _nested_values(document: object, place: Place) -> dict[Place, object]:
    """Return the values in a JSON document; an object or list without entries is a value itself."""
    values: dict[Place, object] = {}
    open_values = [(place, document)]  # no recursion: a request may be nested very deeply
    while open_values:
        place, value = open_values.pop()
        match value:
            case dict() if value:
                open_values += (((*place, name), entry) for name, entry in value.items())
            case list() if value:
                open_values += (((*place, index), entry) for index, entry in enumerate(value))
            case _:
                values[place] = value
    return values
