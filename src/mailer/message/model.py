"""A message: one mailing's text for one client, the row in the job table."""

from datetime import datetime
from typing import Any, ClassVar, Literal

import msgspec

Status = Literal["scheduled", "sending", "delivered", "undelivered", "unknown", "cancelled"]


class Message(msgspec.Struct, frozen=True):
    """A message as it is shown; it carries no personal data."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "id": 7,
        "mailing_id": 1,
        "client_id": 1,
        "status": "delivered",
        "reason": None,
        "last_failure": "http_503",
        "attempts": 2,
        "datetime_send": "2030-01-15T06:00:00.120000Z",
        "created_at": "2030-01-15T06:00:00.040000Z",
        "updated_at": "2030-01-15T06:00:00.150000Z",
    }

    id: int
    mailing_id: int
    client_id: int
    status: Status
    reason: str | None
    last_failure: str | None
    attempts: int
    datetime_send: datetime
    created_at: datetime
    updated_at: datetime


class ClaimedMessage(msgspec.Struct, frozen=True, gc=False):
    """A message that this process holds under a lease until `lease_expires_at`.

    `attempts` counts this one; together with the lease's owner it fences what is written back.
    Made by the thousand and never part of a cycle: the garbage collector need not look at them.
    """

    id: int
    mailing_id: int
    attempts: int
    lease_expires_at: datetime
    phone: str | None
    time_zone: str


class FinishedMessage(msgspec.Struct, frozen=True, gc=False):
    """What became of a claimed message: the state it goes to, and why.

    `attempts` is the count to store: one less than the claim's when nothing was tried.
    """

    claim: ClaimedMessage
    status: Status
    attempts: int
    reason: str | None = None
    due_at: datetime | None = None
    sent_at: datetime | None = None
    last_failure: str | None = None
    """Why the last attempt failed; None when it did not."""
