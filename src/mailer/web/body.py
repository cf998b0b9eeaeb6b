"""Request bodies: strict validation of JSON, and timeouts for bodies and uploads."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Generic

from litestar import Request
from litestar.exceptions import ClientException, HTTPException

from mailer.clock import database_clock
from mailer.json_input import JsonError, TooManyValuesError, read_json
from mailer.validation import Input, Model, check
from mailer.web.litestar_internals import WholeBodyDTO

MAX_BODY_BYTES = 1024 * 1024
"""Bytes of a JSON body, enough for the longest text and filter."""
STALL_TIMEOUT = 60.0  # seconds
MIN_BYTES_PER_TIMEOUT = 64 * 1024
"""Bytes of an upload that must arrive in each `STALL_TIMEOUT`, so that a slow client cannot hold a
slot of the limiter for ever."""
UPLOAD_TIMEOUT = 3600.0
"""Seconds for a whole upload, however fast, because it holds a slot all the time."""
VALIDATED_AS_OF = "validated_as_of"
"""The name, in a request's state, of the time at which its body must be valid. Default: now.

For a repeat of a request that has already done its work, it is the time of the first attempt.
Otherwise a date that was in the future then could be rejected as past.
"""
CLOSE_CONNECTION = {"Connection": "close"}
"""The header of a response that is sent before the whole body has arrived."""


class SlowBodyError(ClientException):
    """The body of the request did not arrive in time."""

    status_code = HTTPStatus.REQUEST_TIMEOUT
    detail = "The request did not arrive in time; try again."


class TimedRequest(Request[Any, Any, Any]):
    """A request whose whole body must arrive within `ConnectionLimits.body` seconds.

    Handlers that read the body as a stream, such as imports, have a timeout of their own.
    """

    async def body(self) -> bytes:
        """Return the body; raises `SlowBodyError`."""
        try:
            async with asyncio.timeout(self.app.state.limits.body):
                return await super().body()
        except TimeoutError:
            raise SlowBodyError(headers=CLOSE_CONNECTION) from None


class StalledUploadError(ClientException):
    """An upload was slower than `MIN_BYTES_PER_TIMEOUT`; nothing was stored."""

    status_code = HTTPStatus.REQUEST_TIMEOUT
    detail = "Too little of the file arrived within a minute; nothing was stored."


class LongUploadError(ClientException):
    """An upload did not arrive within `UPLOAD_TIMEOUT`; nothing was stored."""

    status_code = HTTPStatus.REQUEST_TIMEOUT
    detail = "The file did not arrive within an hour; nothing was stored."


async def read_with_stall_timeout(
    stream: AsyncGenerator[bytes, None],
    stall_timeout: float = STALL_TIMEOUT,
    total_timeout: float = UPLOAD_TIMEOUT,
) -> AsyncGenerator[bytes, None]:
    """Yield the parts of a body as they arrive.

    Raises `StalledUploadError` if fewer than `MIN_BYTES_PER_TIMEOUT` arrive in `stall_timeout`
    seconds; the time in which the consumer works on the parts does not count. Raises
    `LongUploadError` after `total_timeout` seconds, in which that time counts.
    """
    # of the current period, which ends when enough bytes have arrived
    seconds_left, bytes_received = stall_timeout, 0
    loop = asyncio.get_running_loop()
    total_deadline = loop.time() + total_timeout
    async with aclosing(stream):
        while True:
            started_at = loop.time()
            stall_deadline = started_at + seconds_left
            try:
                async with asyncio.timeout_at(min(stall_deadline, total_deadline)):
                    part = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                is_long = stall_deadline > total_deadline
                error_class = LongUploadError if is_long else StalledUploadError
                raise error_class(headers=CLOSE_CONNECTION) from error
            seconds_left -= loop.time() - started_at
            bytes_received += len(part)
            if bytes_received >= MIN_BYTES_PER_TIMEOUT:
                seconds_left, bytes_received = stall_timeout, 0
            yield part


class JsonBody(WholeBodyDTO[Model], Generic[Model]):
    """Decodes a request's JSON body to the model in the annotation of the handler's `data`.

    Litestar's own decoding is not strict: it accepts the text "null" as null, and numbers as dates.
    It also stops at the first error.
    """

    def decode_bytes(self, value: bytes) -> Any:  # noqa: ANN401  # the model differs by handler
        """Return the body as the model; raises `InvalidError` naming every wrong field."""
        return _read(Request(self.asgi_connection.scope), value, self.model)


class _NoFields(Input, frozen=True):
    """The model of a body that may be an empty JSON object at most."""


async def reject_body(request: Request[Any, Any, Any]) -> None:
    """Reject a body with fields, for routes that take no body; otherwise it would be ignored."""
    if body := await request.body():
        _read(request, body, _NoFields)


def _read(request: Request[Any, Any, Any], body: bytes, model: type[Model]) -> Model:
    """Return the JSON `body` of `request` as `model`.

    Raises HTTPException 400 or 415 for a body that is not JSON, and `InvalidError` for wrong
    fields.
    """
    if request.content_type[0] != "application/json":
        status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        raise HTTPException("Send JSON, as Content-Type: application/json.", status_code=status)
    try:
        values = read_json(body, object, limit=MAX_BODY_BYTES)
    except TooManyValuesError as error:
        raise ClientException("The body has too many values.") from error
    except JsonError as error:
        raise ClientException("The body is not JSON in UTF-8.") from error
    as_of = request.scope["state"].get(VALIDATED_AS_OF) or database_clock.now()
    return check(model, values, as_of)
