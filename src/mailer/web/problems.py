"""Conversion of errors to problems: responses in the JSON format for errors of RFC 9457.

Only here does an error of mailer get an HTTP status.
"""

from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from msgspec import UNSET, UnsetType

from mailer.db.engine import is_unavailable
from mailer.errors import (
    ConflictError,
    FieldError,
    ForbiddenError,
    InvalidError,
    MailerError,
    NotFoundError,
    UnavailableError,
)
from mailer.log import describe

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
"""The media type of a problem."""

STATUS_BY_ERROR: dict[type[MailerError], HTTPStatus] = {
    InvalidError: HTTPStatus.BAD_REQUEST,
    ForbiddenError: HTTPStatus.FORBIDDEN,
    NotFoundError: HTTPStatus.NOT_FOUND,
    ConflictError: HTTPStatus.CONFLICT,
    UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}
RETRY_SOON = {"Retry-After": "1"}
"""The header that asks for a repeat of the request after a second."""


class Problem(msgspec.Struct, frozen=True):
    """An error; for invalid input `errors` lists every wrong field."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | UnsetType = UNSET


def problem(status: HTTPStatus, detail: str, errors: list[FieldError] | None = None) -> Problem:
    """Return a problem of type about:blank, which its status describes (RFC 9457, 4.2.1)."""
    return Problem("about:blank", status.phrase, status.value, detail, errors or UNSET)


def to_response(content: Problem) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of a problem, for a response that is sent without Litestar."""
    body = msgspec.json.encode(content)
    length = str(len(body)).encode()
    return [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", length)], body


def on_mailer_error(_: Request[Any, Any, Any], error: MailerError) -> Response[Problem]:
    """Respond to an error of mailer."""
    status = next(
        (status for family, status in STATUS_BY_ERROR.items() if isinstance(error, family)),
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
    if isinstance(error, InvalidError):
        return _response(status, "Some fields are wrong.", errors=list(error.errors))
    headers = None
    if isinstance(error, UnavailableError):
        headers = {"Retry-After": str(error.retry_after)}
    return _response(status, str(error), headers=headers)


def on_http_error(_: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """Respond to an HTTPException, such as Litestar's own for an unknown route or a large body."""
    errors = [
        FieldError(str(extra.get("key", "")), str(extra.get("message", "")))
        for extra in (error.extra if isinstance(error.extra, list) else ())
        if isinstance(extra, dict)
    ]
    # Litestar reports an empty body as a missing parameter `data`
    if isinstance(error, ValidationException) and [wrong.field for wrong in errors] == ["data"]:
        return _response(HTTPStatus.BAD_REQUEST, "The body is empty; send JSON.")
    if isinstance(error, ValidationException):
        return _response(HTTPStatus.BAD_REQUEST, "Some fields are wrong.", errors=errors)
    headers = dict(error.headers or {})
    return _response(HTTPStatus(error.status_code), error.detail, headers=headers)


def on_other_error(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """Respond with 503 if the database is unavailable, and with 500 for any other error."""
    if is_unavailable(error):
        log.warning("database_unavailable", at="api")
        return _response(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The database is unavailable; try again in a moment.",
            headers=RETRY_SOON,
        )
    log.error("request_failed", path=request.scope["path"], **describe(error))
    return _response(HTTPStatus.INTERNAL_SERVER_ERROR, "An internal error occurred.")


def problem_of(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """Respond to an error of any kind."""
    match error:
        case MailerError():
            return on_mailer_error(request, error)
        case HTTPException():
            return on_http_error(request, error)
        case _:
            return on_other_error(request, error)


def _response(
    status: HTTPStatus,
    detail: str,
    *,
    errors: list[FieldError] | None = None,
    headers: dict[str, str] | None = None,
) -> Response[Problem]:
    """Return the response with a problem."""
    body = problem(status, detail, errors)
    return Response(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)
