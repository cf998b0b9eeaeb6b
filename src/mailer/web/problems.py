"""Turns errors into problems (RFC 9457): here alone a family of errors gets a status."""

from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from msgspec import UNSET, UnsetType

from mailer.db.engine import is_away
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

STATUSES: dict[type[MailerError], HTTPStatus] = {
    InvalidError: HTTPStatus.BAD_REQUEST,
    ForbiddenError: HTTPStatus.FORBIDDEN,
    NotFoundError: HTTPStatus.NOT_FOUND,
    ConflictError: HTTPStatus.CONFLICT,
    UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}
SOON = {"Retry-After": "1"}
"""The header of what may be asked again after a second."""


class Problem(msgspec.Struct, frozen=True):
    """What went wrong; `errors` names every wrong field when the input is bad."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | UnsetType = UNSET


def problem(status: HTTPStatus, detail: str, errors: list[FieldError] | None = None) -> Problem:
    """Return a problem whose status says what kind it is (RFC 9457, section 4.2.1)."""
    return Problem("about:blank", status.phrase, status.value, detail, errors or UNSET)


def plain(said: Problem) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the headers and the body of a problem, for who answers without the framework."""
    body = msgspec.json.encode(said)
    length = str(len(body)).encode()
    return [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", length)], body


def on_mailer_error(_: Request[Any, Any, Any], error: MailerError) -> Response[Problem]:
    """Answer what mailer refuses."""
    status = next(
        (status for family, status in STATUSES.items() if isinstance(error, family)),
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
    if isinstance(error, InvalidError):
        return _answer(status, "Some fields are wrong.", errors=list(error.errors))
    headers = None
    if isinstance(error, UnavailableError):
        headers = {"Retry-After": str(error.retry_after)}
    return _answer(status, str(error), headers=headers)


def on_http_error(_: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """Answer what the framework refuses: routes, methods, parameters, media types, sizes."""
    errors = [
        FieldError(str(extra.get("key", "")), str(extra.get("message", "")))
        for extra in (error.extra if isinstance(error.extra, list) else ())
        if isinstance(extra, dict)
    ]
    if isinstance(error, ValidationException) and [e.field for e in errors] == ["data"]:
        return _answer(HTTPStatus.BAD_REQUEST, "The body is empty; send JSON.")
    if isinstance(error, ValidationException):
        return _answer(HTTPStatus.BAD_REQUEST, "Some fields are wrong.", errors=errors)
    headers = dict(error.headers or {})
    return _answer(HTTPStatus(error.status_code), error.detail, headers=headers)


def on_other_error(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """Answer 503 while the database is away, and 500 for what should not happen."""
    if is_away(error):
        log.warning("database_away", at="api")
        return _answer(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The database is away; try again in a moment.",
            headers=SOON,
        )
    log.error("request_failed", path=request.scope["path"], **describe(error))
    return _answer(HTTPStatus.INTERNAL_SERVER_ERROR, "Something went wrong here.")


def problem_of(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """Answer whatever went wrong."""
    match error:
        case MailerError():
            return on_mailer_error(request, error)
        case HTTPException():
            return on_http_error(request, error)
        case _:
            return on_other_error(request, error)


def _answer(
    status: HTTPStatus,
    detail: str,
    *,
    errors: list[FieldError] | None = None,
    headers: dict[str, str] | None = None,
) -> Response[Problem]:
    said = problem(status, detail, errors)
    return Response(said, status_code=status, media_type=MEDIA_TYPE, headers=headers)


HANDLERS: dict[Any, Any] = {
    MailerError: on_mailer_error,
    HTTPException: on_http_error,
    Exception: on_other_error,
}
