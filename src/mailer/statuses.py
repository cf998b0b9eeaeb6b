"""The statuses of mailings and messages, declared once.

Schema, SQL, counts, API, pages and reports derive from this module. Some files name the statuses by
hand: the document of the schema, styles, dashboard, README. `tests/unit/test_statuses.py` checks
that these agree with this module.
"""

from typing import Annotated, Literal, Self, get_args

import msgspec
from msgspec import Meta

MailingStatus = Literal["draft", "scheduled", "running", "paused", "finished", "cancelled"]
"""`draft`: saved, but nothing is sent until a user launches it."""
MAILING_STATUSES: tuple[MailingStatus, ...] = get_args(MailingStatus)
DRAFT: MailingStatus = "draft"

MessageStatus = Literal[
    "scheduled", "sending", "sent", "delivered", "undelivered", "unknown", "cancelled"
]
"""`scheduled`: waits until it is due. `sending`: claimed by a worker. The others are outcomes.
`sent`: the gateway has accepted it, and a receipt is awaited or never came. `delivered`: the
receipt says so, or the gateway has accepted it and sends no receipts. `undelivered`: it failed
permanently. `unknown`: the gateway may have accepted it. `cancelled`: mailer did not send it."""


class StatusRules(msgspec.Struct, frozen=True, kw_only=True):
    """What a status says about a message."""

    label: str
    """In English; the pages translate it."""
    is_open: bool = False
    """Whether mailer still has to send the message. The other statuses are outcomes, which are
    counted by time, reason, time zone and so on."""
    is_sent: bool = False
    """Whether the gateway has accepted the message, or may have."""
    is_final: bool = False
    """Whether nothing changes the message any more, unless a user or a late receipt does. A message
    that is `sent` is final too once its reason is `no_receipt`."""
    is_failure: bool = False
    """Whether the client did not get the message, as far as is known."""
    may_be_retried: bool = False
    """Whether the message is sent again when a user retries the mailing."""
    colour: str | None = None
    """Colour of an outcome in the daily report. Pages have their own, for light and dark themes."""


STATUSES: dict[MessageStatus, StatusRules] = {
    "scheduled": StatusRules(label="waiting", is_open=True),
    "sending": StatusRules(label="being sent", is_open=True),
    "sent": StatusRules(label="accepted", is_sent=True, colour="#7a52cc"),
    "delivered": StatusRules(label="delivered", is_sent=True, is_final=True, colour="#12806a"),
    "undelivered": StatusRules(
        label="undelivered", is_final=True, is_failure=True, may_be_retried=True, colour="#c2371f"
    ),
    "unknown": StatusRules(
        label="delivery unknown",
        is_sent=True,
        is_final=True,
        is_failure=True,
        may_be_retried=True,
        colour="#f0b429",
    ),
    "cancelled": StatusRules(label="cancelled", is_final=True, is_failure=True, colour="#b4bcc6"),
}
"""In the order of the counts in the database, the API and reports: first the open statuses.

The colours of outcomes differ in hue and lightness, so that colour-blind users can
distinguish them."""

MESSAGE_STATUSES = tuple(STATUSES)
# The constants below are the statuses for which a rule is true, or false.
OPEN = tuple(name for name, rules in STATUSES.items() if rules.is_open)
OUTCOMES = tuple(name for name, rules in STATUSES.items() if not rules.is_open)
NOT_SCHEDULED = (*OUTCOMES, *(name for name in OPEN if name != "scheduled"))
"""All but `scheduled`, in the order of the parts of a bar: first the outcomes, then `sending`."""
SENT = tuple(name for name, rules in STATUSES.items() if rules.is_sent)
NOT_FINAL = tuple(name for name, rules in STATUSES.items() if not rules.is_final)
FAILURES = tuple(name for name, rules in STATUSES.items() if rules.is_failure)
RETRYABLE = tuple(name for name, rules in STATUSES.items() if rules.may_be_retried)

Total = Annotated[int, Meta(ge=0)]
"""A number of messages or mailings."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """A count for every status."""

    @classmethod
    def of(cls, **counts: int) -> Self:
        """Return the given counts, and 0 for every other status."""
        return cls(**(dict.fromkeys(cls.__struct_fields__, 0) | counts))

    @property
    def total(self) -> int:
        """Return the sum of all counts."""
        return sum(msgspec.structs.astuple(self))


class MessageCounts(Counts, frozen=True, kw_only=True):
    """Messages by status."""

    scheduled: Total
    sending: Total
    sent: Total
    delivered: Total
    undelivered: Total
    unknown: Total
    cancelled: Total


class OutcomeCounts(Counts, frozen=True, kw_only=True):
    """Messages by outcome."""

    sent: Total
    delivered: Total
    undelivered: Total
    unknown: Total
    cancelled: Total


EXAMPLE_COUNTS = msgspec.structs.asdict(
    MessageCounts.of(scheduled=900, sending=50, sent=40, delivered=200, undelivered=10)
)
"""Counts of messages in the examples of the OpenAPI document."""
EXAMPLE_OUTCOMES = {name: EXAMPLE_COUNTS[name] for name in OUTCOMES}
