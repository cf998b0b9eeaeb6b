"""The responses to requests with an Idempotency-Key: which are stored, and what a repeat gets."""

from http import HTTPStatus

from mailer.errors import ConflictError
from mailer.idempotency.buffering import BufferedRequest, CapturedResponse
from mailer.idempotency.model import IdempotencyRecord

LOCATION_MEDIA_TYPE = "text/uri-list"
"""The media type that marks a stored body as the Location of a response to a form."""
REPLAYED_HEADER = (b"idempotency-replayed", b"true")
"""The header of a response that was stored."""
FORM_SUCCESS_STATUSES = frozenset({HTTPStatus.SEE_OTHER, HTTPStatus.CREATED})
"""Statuses of a successful form request."""
NOT_STORED_STATUSES = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
    }
)
"""Statuses that are not stored, besides 5xx: a repeat may get another response."""
MAX_REFUSAL_BYTES = 16 * 1024
"""Bytes of a stored refusal, a response with a status of 4xx.

Refusals cost their sender nothing, so they must not fill the database: a larger refusal is not
stored, and a repeat of its request is executed again. `MAX_STORED_REFUSALS` limits their number.
Successful responses are always stored; their models limit their size.
"""


class KeyReusedError(ConflictError):
    """The Idempotency-Key was used for another request before; each request needs its own."""


class StoredResponseErasedError(ConflictError):
    """The object that was created with this Idempotency-Key has been deleted since."""


def must_store(response: CapturedResponse, buffered: BufferedRequest) -> bool:
    """Return whether to store a response, so that a repeat gets it.

    Without a digest, which is unknown until the whole body was read, no repeat can be recognized.
    """
    if buffered.is_form:
        return response.status in FORM_SUCCESS_STATUSES and response.location is not None
    is_server_error = response.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    is_refusal = response.status >= HTTPStatus.BAD_REQUEST
    if is_refusal and len(response.body) > MAX_REFUSAL_BYTES:
        return False
    return (
        not is_server_error
        and response.status not in NOT_STORED_STATUSES
        and buffered.digest is not None
    )


def to_stored(response: CapturedResponse, buffered: BufferedRequest) -> CapturedResponse:
    """Return what is stored of a response: of a response to a form only the Location."""
    if buffered.is_form and response.location is not None:
        return CapturedResponse(
            HTTPStatus.SEE_OTHER, media_type=LOCATION_MEDIA_TYPE, body=response.location
        )
    return response


def ensure_same_body(digest: bytes | None, buffered: BufferedRequest) -> None:
    """Raise `KeyReusedError` if a stored digest, which may be None, is not that of the request."""
    if digest is not None and digest != buffered.digest:
        raise KeyReusedError


def replay(record: IdempotencyRecord, buffered: BufferedRequest) -> CapturedResponse:
    """Return the stored response; raises `KeyReusedError` and `StoredResponseErasedError`."""
    if record.status is None or record.body is None:
        # another body would be `KeyReusedError`, but the digest is erased too
        raise StoredResponseErasedError
    ensure_same_body(record.digest, buffered)
    if record.media_type == LOCATION_MEDIA_TYPE:
        location = (b"location", record.body)
        return CapturedResponse(record.status, headers=[location, REPLAYED_HEADER])
    return CapturedResponse(
        record.status, media_type=record.media_type, body=record.body, headers=[REPLAYED_HEADER]
    )
