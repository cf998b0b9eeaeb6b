"""A request with an Idempotency-Key: a worker's claim on it, and its stored record.

The middleware of this package describes the steps of such a request.
"""

from datetime import datetime
from typing import Any

import msgspec

from mailer.errors import ConflictError


class IdempotencyClaim(msgspec.Struct):
    """A worker's claim on a request that has an Idempotency-Key."""

    owner: str
    """The actor who sent the request; see `owner_of`."""
    key: str
    attempt: str
    """A UUID of this attempt to process the request; each attempt has another one."""
    digest: bytes | None = None
    """SHA-256 of the method, URL, credential and body; None until the body has been read."""
    result: dict[str, Any] | None = None
    """What an earlier attempt did before its response was lost; None if it did nothing."""


class IdempotencyRecord(msgspec.Struct, frozen=True):
    """The row of a key that another request has used."""

    attempt: object
    """The UUID of the newest attempt to process that request."""
    digest: bytes | None
    status: int | None
    """The status of the first response; None if there is no response yet."""
    media_type: str | None
    body: bytes | None
    """The body of the first response; None if it was erased."""
    is_free: bool
    """Whether the request has no response and the lease of its claim has expired."""
    has_expired: bool
    """Whether the row is older than 24 hours and no longer counts."""


class Acquired(msgspec.Struct, frozen=True):
    """The key is new, and the claim is acquired."""


class Continued(msgspec.Struct, frozen=True):
    """The claim is acquired, to continue an earlier attempt that did not end."""

    claimed_at: datetime
    """The time of the earlier attempt's claim, or now if that attempt did nothing."""
    digest: bytes | None
    """The digest of the earlier attempt's request; None if that attempt did nothing."""
    result: dict[str, Any] | None
    """The result of the earlier attempt's work; None if that attempt did nothing."""


class InUse(msgspec.Struct, frozen=True):
    """The claim is not acquired: the request has a response, or another attempt processes it."""

    record: IdempotencyRecord


class ClaimLostError(ConflictError):
    """Another attempt of this request is being processed; send it again."""
