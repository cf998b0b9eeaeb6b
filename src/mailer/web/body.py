"""JSON bodies, read strictly: every wrong field is named, and nothing is guessed."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Generic

from litestar import Request
from litestar._openapi.schema_generation import SchemaCreator
from litestar.dto import AbstractDTO
from litestar.dto.data_structures import DTOFieldDefinition
from litestar.exceptions import ClientException, HTTPException
from litestar.openapi.spec import Reference, Schema
from litestar.typing import FieldDefinition

from mailer.clock import database_clock
from mailer.json_input import JsonError, TooManyValuesError, read_json
from mailer.validation import Given, Input, check

BODY_LIMIT = 1024 * 1024
"""Bytes of a JSON body: ample for the longest text and filter."""
STALL_TIMEOUT = 60.0  # seconds
MIN_BYTES_PER_TIMEOUT = 64 * 1024
"""Minimum progress in `STALL_TIMEOUT`, so that a slow sender cannot hold a slot for ever."""
UPLOAD_TIMEOUT = 3600.0  # seconds
"""For a whole upload, whatever its pace: it holds a slot as long."""
ASKED_AT = "asked_at"
"""The name in a request's state of the moment that it counts as asked at, if that was before now.

What was right when it was done stays so for who asks again what became of it.
"""
CLOSE = {"Connection": "close"}
"""The header of an answer to a body of which the rest is not waited for."""


class SlowBodyError(ClientException):
    """The request's body did not arrive in time."""

    status_code = HTTPStatus.REQUEST_TIMEOUT
    detail = "The request did not arrive in time; try again."


class TimedRequest(Request[Any, Any, Any]):
    """A request whose body as a whole is waited for as long as the application's limits say.

    What reads the body as a stream, as an import does, has a limit of its own.
    """

    async def body(self) -> bytes:
        """Return the body; raises `SlowBodyError`."""
        try:
            async with asyncio.timeout(self.app.state.limits.body):
                return await super().body()
        except TimeoutError:
            raise SlowBodyError(headers=CLOSE) from None


class StalledUploadError(ClientException):
    """An upload made less than its minimum progress; nothing was stored."""

    status_code = HTTPStatus.REQUEST_TIMEOUT
    detail = "Too little of the file arrived within a minute; nothing was stored."


class LongUploadError(ClientException):
    """An upload did not arrive within `UPLOAD_TIMEOUT`; nothing was stored."""

    status_code = HTTPStatus.REQUEST_TIMEOUT
    detail = "The file did not arrive within an hour; nothing was stored."


async def never_stalling(
    stream: AsyncGenerator[bytes, None],
    patience: float = STALL_TIMEOUT,
    longest: float = UPLOAD_TIMEOUT,
) -> AsyncGenerator[bytes, None]:
    """Give the body's parts as they arrive; raises `StalledUploadError` when they come too slowly.

    The time that whoever takes the parts needs for them does not count there, but does for the
    whole, which raises `LongUploadError` after `longest` seconds.
    """
    left, came = patience, 0
    loop = asyncio.get_running_loop()
    until = loop.time() + longest
    async with aclosing(stream):
        while True:
            began = loop.time()
            try:
                async with asyncio.timeout_at(min(began + left, until)):
                    part = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                is_long = began + left > until
                why = LongUploadError if is_long else StalledUploadError
                raise why(headers=CLOSE) from error
            left -= loop.time() - began
            came += len(part)
            if came >= MIN_BYTES_PER_TIMEOUT:
                left, came = patience, 0
            yield part


class JsonBody(AbstractDTO[Given], Generic[Given]):
    """Reads a request's body as the model that the handler's `data` is annotated with.

    Litestar's own way reads "null" as null and numbers as dates, and stops at the first error.
    """

    @classmethod
    def create_for_field_definition(cls, *_: object, **__: object) -> None:
        """Need no preparation: the model is the handler's annotation."""

    def decode_bytes(self, value: bytes) -> Any:  # noqa: ANN401  # the model differs by handler
        """Return the body as the model; raises `InvalidError` naming every wrong field."""
        request: Request[Any, Any, Any] = Request(self.asgi_connection.scope)
        model = request.route_handler.parsed_data_field
        if model is None:
            raise TypeError("this handler takes no body")
        return _read(request, value, model.annotation)

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: SchemaCreator
    ) -> Reference | Schema:
        """Return the schema of the model, whichever handler takes it."""
        del handler_id
        return schema_creator.for_field_definition(field_definition)

    @classmethod
    def generate_field_definitions(
        cls, model_type: type[Any]
    ) -> Generator[DTOFieldDefinition, None, None]:
        """Need no definitions: the model is used as it is."""
        raise NotImplementedError(model_type)

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        """Need no nesting: the model is used as it is."""
        raise NotImplementedError(field_definition)


class _Nothing(Input, frozen=True):
    pass


async def takes_nothing(request: Request[Any, Any, Any]) -> None:
    """Refuse a body with fields: a wish that is not heard must not look as if it were."""
    if body := await request.body():
        _read(request, body, _Nothing)


def _read(request: Request[Any, Any, Any], body: bytes, model: type[Given]) -> Given:
    if request.content_type[0] != "application/json":
        status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        raise HTTPException("Send JSON, as Content-Type: application/json.", status_code=status)
    try:
        given = read_json(body, object, limit=BODY_LIMIT)
    except TooManyValuesError as error:
        raise ClientException("The body has too many values.") from error
    except JsonError as error:
        raise ClientException("The body is not JSON in UTF-8.") from error
    return check(model, given, request.scope["state"].get(ASKED_AT) or database_clock.now())
