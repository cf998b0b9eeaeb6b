"""Queries, read like bodies: a model of their own, every wrong parameter named."""

import re
from collections.abc import Callable, Iterable, Mapping
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
from mailer.db.paging import Position
from mailer.errors import FieldError, InvalidError
from mailer.validation import MAX_ID, Given, Input, check

_CAPITAL = re.compile("[A-Z]")

MOST_PARAMETERS = 100
"""Parameters of a query: each takes a microsecond, whoever sends them."""

ID_RULE = {"rule": f"must be a number from 1 to {MAX_ID}"}
Id = Annotated[int, Meta(ge=1, le=MAX_ID, extra=ID_RULE)]

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
    """Which page: `before` and `after` are ids that the answer's `next` and `previous` carry."""

    limit: Limit = 100
    before: Annotated[Id, Meta(description="Older than this id, as `next` has it.")] | UnsetType = (
        UNSET
    )
    after: (
        Annotated[Id, Meta(description="Newer than this id, as `previous` has it.")] | UnsetType
    ) = UNSET

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # pages do not depend on the moment
        """Refuse two positions at once."""
        if {"before", "after"} <= values.keys():
            yield FieldError("after", "cannot be given together with before")

    @property
    def position(self) -> Position:
        """Return what the store needs to know."""
        return Position(
            self.limit,
            None if self.before is UNSET else self.before,
            None if self.after is UNSET else self.after,
        )

    def equal(self) -> dict[str, Any]:
        """Return the filters that are given."""
        paging = PageQuery.__struct_fields__
        return {
            name: value
            for name, value in msgspec.structs.asdict(self).items()
            if name not in paging and value is not UNSET
        }


def takes(model: type[Input], *, or_csv: bool = False) -> dict[str, Any]:
    """Return what a route needs to be `asked` for `model`, and to document it.

    With `or_csv` it also answers in CSV.
    """
    return {
        "dependencies": {"asked": Provide(_reader(model))},
        "operation_class": _operation(model, or_csv=or_csv),
        "response_headers": [ResponseHeader("Vary", value="Accept")] if or_csv else [],
    }


def _reader(model: type[Input]) -> Callable[..., Any]:
    async def read_asked(request: Request[Any, Any, Any]) -> Input:
        return read(request, model)

    return read_asked


def read(
    request: Request[Any, Any, Any], model: type[Given], *, blank_is_absent: bool = False
) -> Given:
    """Return the query of a request as a `model`; raises `InvalidError` naming all that is wrong.

    With `blank_is_absent` it may be a form's, which sends its empty fields too.
    """
    given = parameters(request, blank_is_absent=blank_is_absent)
    return check(model, given, database_clock.now(), strict=False)


def parameters(
    request: Request[Any, Any, Any], *, blank_is_absent: bool = False
) -> dict[str, str | list[str]]:
    """Return the query of a request unchecked; a list is what no rule allows.

    With `blank_is_absent` what has nothing but blanks is left out. Raises `InvalidError` for more
    than `MOST_PARAMETERS`.
    """
    query = request.scope["query_string"].decode("ascii", "surrogateescape")
    try:
        values: dict[str, list[str]] = parse_qs(
            query,
            keep_blank_values=not blank_is_absent,
            errors="surrogateescape",
            max_num_fields=MOST_PARAMETERS,
        )
    except ValueError as error:
        raise InvalidError([FieldError("", "has too many parameters")]) from error
    return {
        _text(name): _only(parameter)
        for name, parameter in values.items()
        if not blank_is_absent or any(map(str.strip, parameter))
    }


def _text(name: str) -> str:
    return name.encode(errors="replace").decode()


def _only(parameter: list[str]) -> str | list[str]:
    """Return the value of a parameter; as a list, which no rule allows, unless it has just one."""
    is_one = len(parameter) == 1 and _text(parameter[0]) == parameter[0]
    return parameter[0] if is_one else parameter


def _operation(model: type[Input], *, or_csv: bool) -> type[Operation]:
    """Return an operation that lists the model's fields as query parameters."""
    _, components = msgspec.json.schema_components([model])
    properties = components[model.__name__]["properties"]

    @dataclass  # as its base is
    class Queried(Operation):
        def __post_init__(self) -> None:
            self.parameters = [
                *(self.parameters or ()),
                *(_parameter(name, dict(schema)) for name, schema in properties.items()),
            ]
            answers = (self.responses or {}).get("200")
            if or_csv and isinstance(answers, OpenAPIResponse) and answers.content is not None:
                text = Schema(type=OpenAPIType.STRING)
                answers.content["text/csv"] = OpenAPIMediaType(schema=text)

    return Queried


def _parameter(name: str, schema: dict[str, Any]) -> Parameter:
    description = schema.pop("description", None)
    attributes = {_CAPITAL.sub(lambda m: f"_{m[0].lower()}", key): schema[key] for key in schema}
    return Parameter(
        name=name, param_in="query", description=description, schema=Schema(**attributes)
    )
