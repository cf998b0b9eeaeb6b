"""The responses to requests with an Idempotency-Key: which are stored, and what a repeat gets.

A form that creates something is such a request too; see `mailer.idempotency.middleware`.
"""

from http import HTTPStatus

from mailer.errors import ConflictError
from mailer.idempotency.buffering import BufferedRequest, CapturedResponse
from mailer.idempotency.model import IdempotencyRecord

LOCATION_MEDIA_TYPE = "text/uri-list"
"""The media type that marks a stored body as the Location of a response to a form."""
REPLAYED_HEADER = (b"idempotency-replayed", b"true")
"""The header that marks a response as a stored one: the repeat was not executed."""
FORM_SUCCESS_STATUSES = frozenset({HTTPStatus.SEE_OTHER, HTTPStatus.CREATED})
"""Statuses of a successful form request: a redirect to the created object, or for a new API key a
page that shows its secret (201)."""
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

    - Of forms, only successful responses are stored. A refused form has created nothing, so a
      repeat can be executed again. (The middleware reads the whole form first, so there is a
      digest.)
    - Of other requests, refusals are stored too, with the exceptions above. A response without a
      digest is not stored: the handler responded before the whole body arrived, and without the
      digest nothing distinguishes a repeat from another request under the same key.
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
    """Return what is stored of a response: all of it, or of a response to a form the Location.

    The page that shows a new API key must not be stored, because it contains the secret. Its repeat
    is redirected to the Location, and so its status 201 is stored as 303.
    """
    if buffered.is_form and response.location is not None:
        return CapturedResponse(
            HTTPStatus.SEE_OTHER, media_type=LOCATION_MEDIA_TYPE, body=response.location
        )
    return response


def ensure_same_body(digest: bytes | None, buffered: BufferedRequest) -> None:
    """Raise `KeyReusedError` if the digest of an earlier request is not that of this one.

    `digest` is None as long as the earlier request has neither a result nor a response: its digest
    is stored with these. Then nothing is raised.
    """
    if digest is not None and digest != buffered.digest:
        raise KeyReusedError


def replay(record: IdempotencyRecord, buffered: BufferedRequest) -> CapturedResponse:
    """Return the stored response to a request, whose `record` must have a status.

    Of the first response's headers it has only the Content-Type, or for a form only the Location.
    `REPLAYED_HEADER` is added. Raises `KeyReusedError` and `StoredResponseErasedError`.
    """
    # The body is None if it was erased. The digest was erased too, so whether this request is a
    # repeat is not known. A status of None (no response yet) is excluded for the type checker.
    if record.status is None or record.body is None:
        raise StoredResponseErasedError
    ensure_same_body(record.digest, buffered)
    if record.media_type == LOCATION_MEDIA_TYPE:
        location = (b"location", record.body)
        return CapturedResponse(record.status, headers=[location, REPLAYED_HEADER])
    return CapturedResponse(
        record.status, media_type=record.media_type, body=record.body, headers=[REPLAYED_HEADER]
    )
