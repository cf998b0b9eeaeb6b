"""A mailing: one text for an audience, between a start and an end.

The types of a mailing in the API and inside the program, and their rules.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Any, ClassVar
from zlib import crc32

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mailer.errors import FieldError
from mailer.gateway.sms_parts import count_parts
from mailer.mailing.client_filter import ClientFilter, is_empty
from mailer.mailing.field_types import (
    NORMAL_WEIGHT,
    EndMoment,
    GatewayName,
    Labels,
    MailingName,
    Moment,
    OnUnknown,
    Priority,
    Purpose,
    Rate,
    SenderName,
    TemplateText,
    Text,
    TimeOfDay,
    WindowEnd,
)
from mailer.mailing.text_template import TextTemplate, parse
from mailer.mailing.window import SendingWindow
from mailer.message.model import Message
from mailer.statuses import (
    DRAFT,
    EXAMPLE_COUNTS,
    EXAMPLE_OUTCOMES,
    MESSAGE_STATUSES,
    NOT_FINAL,
    NOT_SCHEDULED,
    OPEN,
    MailingStatus,
    MessageStatus,
    OutcomeCounts,
)
from mailer.text import is_blank
from mailer.validation import Input

FIRST_MOMENT = datetime(1970, 1, 1, tzinfo=UTC)
"""Lower bound of the start and the end of a mailing, included."""
LAST_MOMENT = datetime(9000, 1, 1, tzinfo=UTC)
"""Upper bound of the start and the end, excluded. It is far from the end of Python's calendar, the
year 9999, so that no conversion to a time zone leaves the calendar."""

END_MARGIN = timedelta(seconds=0.1)
"""How long before the end of a mailing its last request must have ended. Clocks and networks are
inexact, and no request may be in flight after the end."""

ENDED: frozenset[MailingStatus] = frozenset({"finished", "cancelled"})
"""Statuses of a mailing that has ended."""


def excluded_opt_outs(purpose: Purpose) -> bool | None:
    """Return which clients a purpose reaches, as the parameter `opted_out` of counts of clients.

    False: those who have not opted out; None: all.
    """
    return False if purpose == "marketing" else None


class MailingInput(Input, frozen=True, kw_only=True):
    """The rules that new and changed mailings share."""

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # `passed_end` is apart
        """Report fields that contradict each other, dates out of range, and a blank text or filter.

        `values` are the fields that are present. Whether the end has passed is not among these
        rules, because it does not matter for a draft; see `passed_end`.
        """
        start, end = values.get("datetime_start"), values.get("datetime_end")
        for name in ("datetime_start", "datetime_end"):
            if name in values and not FIRST_MOMENT <= values[name] < LAST_MOMENT:
                yield FieldError(name, "must lie between the years 1970 and 9000")
        if start and end and end <= start:
            yield FieldError("datetime_end", "must be after datetime_start")
        if "text" in values and is_blank(values["text"]):
            yield FieldError("text", "must contain a visible character")
        opens = values.get("send_interval_time_start")
        closes = values.get("send_interval_time_end")
        if opens and closes and time.fromisoformat(opens) == time.fromisoformat(closes):
            yield FieldError("send_interval_time_end", "must differ from send_interval_time_start")
        client_filter = values.get("client_filter")
        if client_filter is not None and is_empty(client_filter):
            yield FieldError("client_filter", "must have an entry; null means everybody")


def passed_end(values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:
    """Report an end that has passed at the moment `at`: the mailing would reach nobody.

    An end that is not after the start is reported by `MailingInput`, and not twice.
    """
    start, end = values.get("datetime_start"), values.get("datetime_end")
    if end and end <= at and not (start and end <= start):
        yield FieldError("datetime_end", "must be in the future")


def missing_window_bound(values: Mapping[str, Any]) -> Iterable[FieldError]:
    """Report the missing time of a sending window of which only one time is set.

    `values` has the complete mailing, not only its changed fields.
    """
    opens, closes = "send_interval_time_start", "send_interval_time_end"
    for missing, present in ((opens, closes), (closes, opens)):
        if values.get(missing) is None and values.get(present) is not None:
            yield FieldError(missing, f"is required together with {present}")


class NewMailing(MailingInput, frozen=True, kw_only=True):
    """A mailing to create."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "name": "Orders of January",
        "labels": ["January", "orders"],
        "datetime_start": "2030-01-15T09:00:00+03:00",
        "datetime_end": "2030-01-15T21:00:00+03:00",
        "send_interval_time_start": "09:00",
        "send_interval_time_end": "21:00",
        "text": "Your order is ready.",
        "client_filter": {"operator_codes": ["000"], "tags": ["nobody"]},
        "on_unknown": "retry",
        "purpose": "marketing",
        "priority": "normal",
        "rate": None,
        "gateway": None,
        "sender": "Acme",
        "draft": True,
    }
    """A draft for nobody: sending the example to a real mailer harms nobody."""

    name: MailingName | None = None
    labels: Labels = msgspec.field(default_factory=list)
    datetime_start: Moment
    datetime_end: EndMoment
    send_interval_time_start: TimeOfDay | None = None
    send_interval_time_end: WindowEnd | None = None
    text: TemplateText
    client_filter: ClientFilter = None
    on_unknown: OnUnknown = "retry"
    purpose: Purpose = "marketing"
    priority: Priority = "normal"
    rate: Rate | None = None
    gateway: GatewayName | None = None
    """The gateway that takes all messages; null for the gateways of each client's operator code."""
    sender: SenderName | None = None
    """Name or number that clients see; null for the sender of the gateway."""
    draft: bool = False
    """Whether to save the mailing as a draft. Nothing of a draft is sent until it is launched, and
    its start and end may have passed."""

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:
        """Report what `MailingInput` reports, a passed end, and a window with only one time."""
        yield from super().broken_rules(values, at)
        if values.get("draft") is not True:
            yield from passed_end(values, at)
        yield from missing_window_bound(values)


class MailingChange(MailingInput, frozen=True, kw_only=True):
    """Changes to a mailing. Absent fields keep their values."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"text": "Your order waits for you.", "sender": "Acme"}

    name: MailingName | UnsetType | None = UNSET
    labels: Labels | UnsetType = UNSET
    datetime_start: Moment | UnsetType = UNSET
    datetime_end: EndMoment | UnsetType = UNSET
    send_interval_time_start: TimeOfDay | UnsetType | None = UNSET
    send_interval_time_end: WindowEnd | UnsetType | None = UNSET
    text: TemplateText | UnsetType = UNSET
    client_filter: ClientFilter | UnsetType = UNSET
    on_unknown: OnUnknown | UnsetType = UNSET
    purpose: Purpose | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    rate: Rate | UnsetType | None = UNSET
    gateway: GatewayName | UnsetType | None = UNSET
    sender: SenderName | UnsetType | None = UNSET

    def provided_values(self) -> dict[str, Any]:
        """Return the fields that are present in the request, by name."""
        return {
            name: value
            for name, value in msgspec.structs.asdict(self).items()
            if value is not UNSET
        }


WINDOW_CLOSED = "window_closed"
"""Reason of a hold: the sending window is closed for all clients who wait."""
RETRY_PAUSE = "retry_pause"
"""Reason of a hold: the message that is due next has failed, and waits for its next attempt."""


class Hold(msgspec.Struct, frozen=True):
    """Since when, why and until when a running mailing does not send.

    The reason is one of:
    - `restored`: the database was restored and an admin has not allowed sending yet.
    - `no_gateway`: no gateway is configured, or not the mailing's own.
    - `no_gateway_for_clients`: each gateway for the clients who wait is out or paused, or none is
      configured for them.
    - `gateway_paused`: by a user.
    - `window_closed`: the sending window is closed for all clients who wait.
    - `retry_pause`: all messages that are left wait for their next attempt after a failure.
    - the gateway's last failure, such as `http_503`.
    """

    since: datetime
    reason: str
    until: Annotated[
        datetime | None,
        Meta(
            description="When sending continues: the next opening of the sending window for a"
            " client who waits, or the next attempt. Null if that is not known. If it is not before"
            " `datetime_end`, nothing more is sent."
        ),
    ] = None
    time_zone: Annotated[
        str | None,
        Meta(
            description="Time zone of the clients whose sending window opens at `until`; null for"
            " another reason than `window_closed`."
        ),
    ] = None

    @property
    def is_fault(self) -> bool:
        """Whether the mailing waits because something does not work or a user has stopped it."""
        return self.reason not in {WINDOW_CLOSED, RETRY_PAUSE}


class Mailing(msgspec.Struct, frozen=True, kw_only=True):
    """A mailing with its counts of messages by status."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        **{name: value for name, value in NewMailing.EXAMPLE.items() if name != "draft"},
        "id": 1,
        "client_filter": {"operator_codes": ["912", "916"], "tags": ["vip"]},
        "datetime_start": "2030-01-15T06:00:00Z",
        "datetime_end": "2030-01-15T18:00:00Z",
        "status": "running",
        "text_version": 1,
        "placeholders": [],
        "clients_count": 1200,
        "created_messages": 1200,
        **{f"{status}_messages": count for status, count in EXAMPLE_COUNTS.items()},
        "created_at": "2030-01-10T08:00:00Z",
        "updated_at": "2030-01-15T06:00:00Z",
        "held": None,
    }

    id: int
    name: str | None
    """A name for users; null when it has none."""
    labels: list[str]
    """Labels to find the mailing by, sorted."""
    datetime_start: datetime
    datetime_end: datetime
    send_interval_time_start: str | None
    send_interval_time_end: str | None
    text: Text
    client_filter: ClientFilter
    on_unknown: OnUnknown
    purpose: Purpose
    priority: Priority
    rate: Annotated[
        float | None,
        Meta(description="Most messages a second of this mailing; null without a limit."),
    ]
    gateway: str | None
    """The gateway that takes all messages; null for the gateways of each client's operator code."""
    sender: str | None
    """Name or number that clients see; null for the sender of the gateway."""
    status: MailingStatus
    text_version: Annotated[
        int, Meta(description="Number of the version of the text, from 1; each change adds one.")
    ]
    placeholders: Annotated[
        list[str],
        Meta(
            description="Fields of the client that the text has, in its order. Empty if the text is"
            " sent as it is, also with braces: texts from before there were placeholders are."
        ),
    ]
    clients_count: int
    """Size of the audience: as it was counted last, or the number of messages once all of it is
    enqueued."""
    created_messages: int
    """Messages that exist: 0 before the start, and after the retention period."""
    scheduled_messages: int
    sending_messages: int
    sent_messages: Annotated[
        int,
        Meta(
            description="Accepted by a gateway. Their receipt is awaited, or did not come in time;"
            " it moves these counts also when the mailing is finished."
        ),
    ]
    delivered_messages: int
    undelivered_messages: int
    unknown_messages: int
    cancelled_messages: int
    created_at: datetime
    updated_at: datetime
    held: Hold | None = None
    """Since when, why and until when the mailing does not send although it runs; null while it
    sends."""

    def count_of(self, *statuses: MessageStatus) -> int:
        """Return the number of messages that have one of `statuses`."""
        return sum(getattr(self, f"{status}_messages") for status in statuses)

    def count_unsent(self) -> int:
        """Return how many clients have no message yet, or a message that is still `scheduled`.

        Until the audience is enqueued, `clients_count` may be lower than the number of messages:
        `max` prevents a negative result.
        """
        return max(0, self.clients_count - self.count_of(*NOT_SCHEDULED))

    @property
    def content_digest(self) -> str:
        """A digest of all fields that a user can change, to detect a change between two requests.

        It detects accidents; it is no protection against forgery.
        """
        content = [getattr(self, name) for name in MailingChange.__struct_fields__]
        return f"{crc32(msgspec.json.encode(content)):08x}"

    @property
    def template(self) -> TextTemplate | None:
        """The parsed text; None: the text has no placeholders and is sent as it is."""
        return parse(self.text) if self.placeholders else None

    @property
    def is_draft(self) -> bool:
        """Whether nothing of the mailing is sent until a user launches it."""
        return self.status == DRAFT

    @property
    def has_ended(self) -> bool:
        """Whether the mailing is finished or cancelled. Messages of a cancelled one may be open."""
        return self.status in ENDED

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will be sent, unless a user retries the mailing.

        It has ended, every client has a message, and no message is open. Until the audience is
        enqueued, `clients_count` may be lower than the number of messages. If the mailing was
        cancelled before its start, its clients count as cancelled messages.
        """
        are_all_created = self.count_of(*MESSAGE_STATUSES) >= self.clients_count
        return self.has_ended and are_all_created and not self.count_of(*OPEN)

    @property
    def is_settled(self) -> bool:
        """Whether nothing will change any more, unless a user acts.

        It is closed, and all its messages have a final status.
        """
        return self.is_closed and not self.count_of(*NOT_FINAL)


MAX_TEXT_VERSIONS = 1_000
"""Most versions of the text of a mailing."""


class TextVersion(msgspec.Struct, frozen=True):
    """A version of the text of a mailing, with the messages that were sent with it."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "version": 1,
        "text": "Your order is ready.",
        "created_at": "2030-01-10T08:00:00Z",
        "messages": EXAMPLE_OUTCOMES,
    }

    version: int
    text: str
    created_at: datetime
    """When the text was written; of the first version, when the mailing was created."""
    messages: Annotated[
        OutcomeCounts,
        Meta(
            description="Messages that have an outcome and were tried with this text, by outcome."
            " Messages from before texts had versions are not counted here."
        ),
    ]


class MailingDetail(Mailing, frozen=True, kw_only=True):
    """A mailing with its newest messages."""

    EXAMPLE: ClassVar[dict[str, Any]] = Mailing.EXAMPLE | {"mailing_messages": [Message.EXAMPLE]}

    mailing_messages: list[Message]


class RunningMailing(msgspec.Struct, frozen=True):
    """The part of a mailing that the dispatcher needs to send its messages."""

    id: int
    text: str
    datetime_end: datetime
    window: SendingWindow | None
    on_unknown: OnUnknown
    sender: str | None = None
    """Name or number that clients see; None for that of the gateway."""
    respects_opt_outs: bool = True
    """Whether its messages are not sent to clients who have opted out."""
    text_version: int = 1
    weight: int = NORMAL_WEIGHT
    """Weight of its priority, by which competing mailings share the capacity."""
    rate: float | None = None
    """Most messages a second of all workers together; None without a limit."""
    parts: int = 1
    """Number of SMS that the text takes. With placeholders it is known once they are filled in."""
    template: TextTemplate | None = None
    """The parsed text; None: the text has no placeholders and is sent as it is."""
    may_send: bool = True
    """Whether new requests may start. It is false while the mailing is paused or replanned, and
    after its end."""

    @property
    def repeats_unknown(self) -> bool:
        """Whether a message with delivery unknown is sent again; if not, it ends as unknown."""
        return self.on_unknown == "retry"

    def with_text(
        self, version: int, text: str, template: TextTemplate | None = None
    ) -> "RunningMailing":
        """Return the mailing with another version of its text."""
        return msgspec.structs.replace(
            self,
            text=text,
            text_version=version,
            template=template,
            parts=count_parts(text).parts,
        )

    def time_left(self, now: datetime) -> float:
        """Return the seconds from `now` until all requests must have ended; negative after that."""
        return (self.datetime_end - END_MARGIN - now).total_seconds()
