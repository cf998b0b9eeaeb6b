"""A message: one mailing's text for one client, the row in the job table."""

from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

import msgspec

from mailer.errors import NotFoundError

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


class Failure(msgspec.Struct, frozen=True):
    """An attempt that failed: from the claim until it was written down, and why."""

    attempt: int
    """The first is 1. One whose attempt was given back keeps its number, and the next has it too;
    after a retry of the mailing they begin anew."""
    claimed_at: datetime
    ended_at: datetime
    reason: str


class Story(Message, frozen=True):
    """All that is known of a message; unlike the message it tells a phone."""

    due_at: datetime
    retry_at: datetime | None
    """When the pause after its last attempt ends; `due_at` may be later, in the sending window."""
    sent_at: datetime | None
    claimed_at: datetime | None
    """When the attempt under way was claimed, or else the last one; what was handed back untried
    does not count. None when nothing was tried, or before this was recorded."""
    lease_expires_at: datetime | None
    """While it is being sent: when another process may take it over."""
    failures: tuple[Failure, ...]
    """The newest attempts that failed, at most 20, oldest first."""
    operator_code: str
    time_zone: str
    """These two as they were when the message was made."""
    phone: str | None
    """The client's now; None once the client is deleted."""


class MessageNotFoundError(NotFoundError):
    """There is no such message."""


FIRST_DUE = datetime(1970, 1, 1, tzinfo=UTC)
"""Before which nothing is due."""


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
    unknown_reason: str | None = None
    """Why the delivery by an earlier attempt is unknown; None when none is."""
    due_at: datetime = FIRST_DUE
    """Messages of a mailing are claimed in the order of this and of their ids."""
    last_failure: str | None = None
    """Why the last attempt before this one failed; None when none did."""

    @property
    def was_tried(self) -> bool:
        """Whether an earlier attempt failed, or its delivery is unknown."""
        return self.last_failure is not None or self.unknown_reason is not None


class FinishedMessage(msgspec.Struct, frozen=True, gc=False):
    """The result of a claimed message: the status that it gets, and why.

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
    unknown_reason: str | None = None
    """Why the delivery by this attempt is unknown; None leaves what is known of those before."""
    retry_at: datetime | None = None
    """When the pause after this attempt ends, where it is to be tried again; `due_at` is inside the
    window as well."""
