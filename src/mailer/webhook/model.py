"""Types and pure rules of webhooks: endpoints, events, deliveries."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, get_args
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mailer.access.model import FORBIDDEN_CHARACTERS, clean_name
from mailer.errors import ConflictError, FieldError, NotFoundError
from mailer.urls import split_url
from mailer.validation import STORABLE, Input

EventType = Literal[
    "mailing.started",
    "mailing.finished",
    "mailing.held",
    "messages.finished",
    "client.opted_out",
    "reply.received",
    "gateway.down",
    "gateway.up",
]
"""The events that an endpoint can subscribe to."""
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
TEST_EVENT = "test"
"""The type of the event that a user sends to one endpoint; no endpoint subscribes to it."""
DeliveryStatus = Literal["waiting", "delivered", "failed"]
DisabledReason = Literal["user", "gone", "failing"]
"""Why an endpoint is disabled: by a user, because it has answered 410, or because it has failed for
too long."""

MAX_WEBHOOKS = 20
"""Most endpoints. Each has its own requests, so this also limits the requests of a worker."""
MAX_URL_LENGTH = 2_000
SECRET_OVERLAP = timedelta(hours=24)
"""For how long requests are also signed with the previous secret after a rotation."""
RETRY_PERIOD = timedelta(days=3)
"""An event is not delivered any more when it is older."""
EVENT_RETENTION = timedelta(days=4)
"""An event is deleted when it is older. Its last failure can be read for a day before that."""


class WebhookNotFoundError(NotFoundError):
    """There is no such webhook."""


class DeliveryNotFoundError(NotFoundError):
    """There is no such delivery of this webhook."""


class TooManyWebhooksError(ConflictError):
    """There are 20 webhooks already; delete one first."""


class WebhookDisabledError(ConflictError):
    """The webhook is disabled; enable it first."""


NAME_RULE = "must be 1 to 64 characters on one line"
WebhookName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=STORABLE,
        description="A name, to recognize the webhook.",
        extra={"rule": NAME_RULE, "normalize": clean_name},
    ),
]
Events = Annotated[
    list[EventType],
    Meta(
        min_length=1,
        max_length=len(EVENT_TYPES),
        description="The events to send.",
        extra={"rule": "must be a list of known events, at least one"},
    ),
]
Url = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_URL_LENGTH,
        description="Where events are sent, by POST. It starts with https://, has no user and no"
        " fragment, and its host must have public addresses, unless the setting"
        " `MAILER_WEBHOOK_PRIVATE_ADDRESSES` allows others.",
        extra={"rule": f"must be a URL of 1 to {MAX_URL_LENGTH} characters"},
    ),
]


def url_errors(url: str) -> Iterable[FieldError]:
    """Yield what is wrong with the text of an endpoint's URL; its addresses are checked later."""
    try:
        parts = split_url(url, ("https", "http"))
    except ValueError as error:
        yield FieldError("url", str(error))
        return
    if "@" in parts.netloc:
        yield FieldError("url", "must have no user and no password")
    if "#" in url:
        yield FieldError("url", "must have no fragment, which is never sent")


def event_errors(events: list[EventType]) -> Iterable[FieldError]:
    """Yield an error if an event is repeated."""
    if len(set(events)) < len(events):
        yield FieldError("events", "must have each event once")


class _Checked(Input, frozen=True, kw_only=True):
    """Base of the inputs with a URL and events."""

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # they do not depend on the moment
        """Reject a name with control characters, a wrong URL, and repeated events."""
        if re.search(f"[{FORBIDDEN_CHARACTERS}]", values.get("name") or ""):
            yield FieldError("name", NAME_RULE)
        if isinstance(url := values.get("url"), str):
            yield from url_errors(url)
        if isinstance(events := values.get("events"), list):
            yield from event_errors(events)


class NewWebhook(_Checked, frozen=True, kw_only=True):
    """An endpoint to create."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "name": "Shop",
        "url": "https://shop.example/mailer",
        "events": ["messages.finished", "mailing.finished"],
    }

    name: WebhookName
    url: Url
    events: Events


class WebhookChange(_Checked, frozen=True, kw_only=True):
    """Fields of an endpoint to change."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"enabled": True}

    name: WebhookName | UnsetType = UNSET
    url: Url | UnsetType = UNSET
    events: Events | UnsetType = UNSET
    enabled: (
        Annotated[
            bool,
            Meta(
                description="`true` also ends all pauses: what waits for the webhook is sent at"
                " once. `false`: events are not recorded for it, and what waits stays, until the"
                " webhook is enabled, for three days at most."
            ),
        ]
        | UnsetType
    ) = UNSET


class Redelivery(Input, frozen=True, kw_only=True):
    """What to deliver again: one delivery, or all failed ones since a time."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"failed_since": "2030-01-15T00:00:00Z"}

    delivery_id: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=2**53 - 1,
                description="One delivery, also if it succeeded.",
                extra={"rule": "must be the id of a delivery"},
            ),
        ]
        | UnsetType
    ) = UNSET
    failed_since: (
        Annotated[
            datetime, Meta(tz=True, description="All failed deliveries of events since then.")
        ]
        | UnsetType
    ) = UNSET

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # likewise
        """Require exactly one of the two fields."""
        if len(values.keys() & {"delivery_id", "failed_since"}) != 1:
            yield FieldError("failed_since", "give either delivery_id or failed_since")


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint: a URL of another system to which events are sent."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "id": 3,
        "name": "Shop",
        "url": "https://shop.example/mailer",
        "events": ["messages.finished", "mailing.finished"],
        "enabled": True,
        "disabled_at": None,
        "disabled_reason": None,
        "failures": 0,
        "failing_since": None,
        "last_success_at": "2030-01-15T08:00:00Z",
        "waiting": 0,
        "dropped": 0,
        "previous_secret_until": None,
        "created_at": "2030-01-14T08:00:00Z",
        "updated_at": "2030-01-14T08:00:00Z",
    }

    id: int
    name: str
    url: str
    events: list[str]
    enabled: bool
    disabled_at: datetime | None
    disabled_reason: Annotated[
        DisabledReason | None,
        Meta(
            description="`user`; `gone`: the endpoint has answered 410; `failing`: it has failed"
            " for too long."
        ),
    ]
    failures: Annotated[int, Meta(description="Consecutive failed attempts of all deliveries.")]
    failing_since: datetime | None
    last_success_at: datetime | None
    waiting: Annotated[int, Meta(description="Deliveries that wait for an attempt.")]
    dropped: Annotated[
        int,
        Meta(description="Deliveries that were dropped because too many were waiting."),
    ]
    previous_secret_until: Annotated[
        datetime | None,
        Meta(description="Until then, requests are also signed with the previous secret."),
    ]
    created_at: datetime
    updated_at: datetime


class WebhookWithSecret(Webhook, frozen=True, kw_only=True):
    """An endpoint with its secret, which is in no other response."""

    EXAMPLE: ClassVar[dict[str, Any]] = Webhook.EXAMPLE | {
        "secret": "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    }

    secret: Annotated[str, Meta(description="The key of the signatures. Store it like a password.")]


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """An event for one endpoint, and its last attempt."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "id": 12,
        "event_id": "0b7c1f9e-6c8a-4a55-9d0f-0d5a6c1f2b3e",
        "event": "mailing.finished",
        "status": "waiting",
        "attempts": 1,
        "response_status": 503,
        "error": "http_503",
        "attempted_at": "2030-01-15T08:00:00Z",
        "next_attempt_at": "2030-01-15T08:00:05Z",
        "created_at": "2030-01-15T08:00:00Z",
    }

    id: int
    event_id: Annotated[UUID, Meta(description="Sent as `webhook-id`; the same for all attempts.")]
    event: Annotated[str, Meta(description="The type of the event.")]
    status: DeliveryStatus
    attempts: int
    response_status: Annotated[
        int | None, Meta(description="The HTTP status of the last response, if there was one.")
    ]
    error: Annotated[
        str | None,
        Meta(
            description="Why the last attempt failed: `http_...` with the status, `timeout`,"
            " `connection_failed`, `connection_lost`, `bad_response`, `private_address`,"
            " `unknown_host`, `redirect`; or why no more attempts are made: `expired`, `dropped`."
        ),
    ]
    attempted_at: datetime | None
    next_attempt_at: Annotated[
        datetime | None, Meta(description="Null while an attempt runs, and when none follows.")
    ]
    created_at: datetime


class RedeliveredEvents(msgspec.Struct, frozen=True):
    """Deliveries that are attempted again."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"deliveries": 12}

    deliveries: int
