"""Query parameters: each route has a model of them, by which they are validated like a body.

Every wrong parameter is reported, not only the first one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import parse_qs

import msgspec
from litestar import Request
from litestar.datastructures import ResponseHeader
from litestar.di import Provide
from litestar.openapi.spec import (
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Parameter,
    Schema,
)
from msgspec import UNSET, Meta, UnsetType

from mailer.clock import database_clock
from mailer.db.paging import Cursor
from mailer.errors import FieldError, InvalidError
from mailer.validation import MAX_ID, STORABLE, Input, Model, check

MAX_PARAMETERS = 100
"""Parameters of a query; more are rejected, because each takes time to read."""

_CAPITAL = re.compile("[A-Z]")

ID_RULE = {"rule": f"must be a number from 1 to {MAX_ID}"}
"""The text of the error for a value that is not an id."""
Id = Annotated[int, Meta(ge=1, le=MAX_ID, extra=ID_RULE)]

SearchWords = Annotated[
    str,
    Meta(
        max_length=200,
        pattern=STORABLE,
        extra={"rule": "must be at most 200 characters, without null characters"},
    ),
]
Limit = Annotated[
    int,
    Meta(
        ge=1,
        le=1000,
        description="Rows on the page, 1 to 1,000.",
        extra={"rule": "must be a number from 1 to 1000"},
    ),
]


class PageQuery(Input, frozen=True, kw_only=True):
    """The position of a page of a list. Models of lists with filters extend it.

    `before` and `after` are ids; clients get them in the URLs `next` and `previous` of a response.
    """

    limit: Limit = 100
    before: (
        Annotated[Id, Meta(description="Only rows older than this id; taken from `next`.")]
        | UnsetType
    ) = UNSET
    after: (
        Annotated[Id, Meta(description="Only rows newer than this id; taken from `previous`.")]
        | UnsetType
    ) = UNSET

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # pages do not depend on the moment
        """Reject `before` together with `after`."""
        if {"before", "after"} <= values.keys():
            yield FieldError("after", "cannot be given together with before")

    @property
    def position(self) -> Cursor:
        """The position of the page, for the SQL of lists."""
        return Cursor(
            self.limit,
            None if self.before is UNSET else self.before,
            None if self.after is UNSET else self.after,
        )

    def filters(self) -> dict[str, Any]:
        """Return the given filters: values that columns must equal, without the paging fields."""
        paging_fields = PageQuery.__struct_fields__
        return {
            name: value
            for name, value in msgspec.structs.asdict(self).items()
            if name not in paging_fields and value is not UNSET
        }


def accepts_query(model: type[Input], *, or_csv: bool = False) -> dict[str, Any]:
    """Return options for the decorator of a route with query parameters.

    The handler receives them as its parameter `query_params`, a `model`, and OpenAPI documents
    them. With `or_csv`, OpenAPI also documents that the response may be CSV.
    """
    return {
        "dependencies": {"query_params": query_provider(model)},
        "operation_class": _operation(model, or_csv=or_csv),
        "response_headers": [ResponseHeader("Vary", value="Accept")] if or_csv else [],
    }


def query_provider(model: type[Input]) -> Provide:
    """Return a dependency of handlers that reads the query of a request as a `model`."""

    async def provide_query(request: Request[Any, Any, Any]) -> Input:
        return read_query(request, model)

    return Provide(provide_query)


def read_query(
    request: Request[Any, Any, Any], model: type[Model], *, blank_is_absent: bool = False
) -> Model:
    """Return the query of a request as a `model`; raises `InvalidError` naming every error.

    With `blank_is_absent`, blank parameters are left out. Use it for forms: browsers send their
    empty fields too.
    """
    values = read_unvalidated_query(request, blank_is_absent=blank_is_absent)
    return check(model, values, database_clock.now(), strict=False)


def read_unvalidated_query(
    request: Request[Any, Any, Any], *, blank_is_absent: bool = False
) -> dict[str, str | list[str]]:
    """Return the query of a request without validation.

    The value of a parameter that is repeated or is not UTF-8 is a list, which no model accepts.
    With `blank_is_absent`, blank parameters are left out. Raises `InvalidError` for more than
    `MAX_PARAMETERS`.
    """
    query = request.scope["query_string"].decode("ascii", "surrogateescape")
    try:
        values_by_name: dict[str, list[str]] = parse_qs(
            query,
            keep_blank_values=not blank_is_absent,
            errors="surrogateescape",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError as error:
        raise InvalidError([FieldError("", "has too many parameters")]) from error
    return {
        _without_surrogates(name): _only_value_or_list(values)
        for name, values in values_by_name.items()
        if not blank_is_absent or any(map(str.strip, values))
    }


def _without_surrogates(text: str) -> str:
    """Replace each surrogate by `?`. Bytes that are not UTF-8 were decoded to surrogates."""
    return text.encode(errors="replace").decode()


def _only_value_or_list(values: list[str]) -> str | list[str]:
    """Return the only value of a parameter, or the list if there are several or it is not UTF-8."""
    is_valid = len(values) == 1 and _without_surrogates(values[0]) == values[0]
    return values[0] if is_valid else values


def _operation(model: type[Input], *, or_csv: bool) -> type[Operation]:
    """Return an operation of OpenAPI that has the model's fields as query parameters.

    With `or_csv`, its response may be CSV.
    """

    @dataclass  # like its base class
    class QueryOperation(Operation):
        def __post_init__(self) -> None:
            self.parameters = [*(self.parameters or ()), *query_parameters(model)]
            response = (self.responses or {}).get("200")
            if or_csv and isinstance(response, OpenAPIResponse) and response.content is not None:
                text = Schema(type=OpenAPIType.STRING)
                response.content["text/csv"] = OpenAPIMediaType(schema=text)

    return QueryOperation


def query_parameters(model: type[Input]) -> list[Parameter]:
    """Return the fields of a model as query parameters of OpenAPI."""
    _, components = msgspec.json.schema_components([model])
    properties = components[model.__name__]["properties"]
    return [_parameter(name, dict(schema)) for name, schema in properties.items()]


def _parameter(name: str, schema: dict[str, Any]) -> Parameter:
    """Return the query parameter `name` for OpenAPI.

    `schema` has names of JSON Schema, such as `anyOf`; Litestar's class has `any_of` instead.
    """
    description = schema.pop("description", None)
    attributes = {
        _CAPITAL.sub(lambda capital: f"_{capital[0].lower()}", key): value
        for key, value in schema.items()
    }
    # a list is one parameter, with commas between its entries
    is_list = schema.get("type") == "array"
    return Parameter(
        name=name,
        param_in="query",
        description=description,
        schema=Schema(**attributes),
        explode=False if is_list else None,
    )
