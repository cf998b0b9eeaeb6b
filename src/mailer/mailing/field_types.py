"""Types of the fields of mailings, with their rules and their descriptions in the API."""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta

from mailer.text import clean_label, compose, fold_label
from mailer.validation import STORABLE

Moment = Annotated[
    datetime,
    Meta(
        tz=True,
        description="A date and time with an offset from UTC (RFC 3339).",
        examples=["2030-01-15T09:00:00+03:00"],
        extra={"rule": "must be a date and time with an offset, such as 2030-01-15T09:00:00Z"},
    ),
]
# Like `Moment`; only the example in the OpenAPI document differs.
EndMoment = Annotated[Moment, Meta(examples=["2030-01-15T21:00:00+03:00"])]
TimeOfDay = Annotated[
    str,
    Meta(
        # (?!\n) since `$` also matches before a final line feed; \Z is unknown in JSON Schema
        pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?(?!\n)$",
        description="A time of day, `HH:MM[:SS]`, on each client's local clock.",
        examples=["09:00"],
        extra={"rule": "must be a time of day, HH:MM or HH:MM:SS, or null"},
    ),
]
# Like `TimeOfDay`; only the example differs.
WindowEnd = Annotated[TimeOfDay, Meta(examples=["21:00"])]
Text = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=1600,
        pattern=STORABLE,
        description="The text of the message, with at least one visible character; stored in"
        " Unicode normalization form C (NFC).",
        examples=["Your order is ready."],
        extra={
            "rule": "must be 1 to 1,600 characters, without null characters",
            "normalize": compose,
        },
    ),
]
MailingName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=100,
        pattern=STORABLE,
        description="A name for users; clients do not see it. Blanks around it and invisible"
        " characters are removed.",
        examples=["Orders of January"],
        extra={"rule": "must be 1 to 100 characters, or null", "normalize": clean_label},
    ),
]
MAX_LABELS = 10
"""Labels that a mailing may have."""
Label = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=32,
        pattern=STORABLE,
        description="A label of mailings. Labels are compared without regard to case.",
        examples=["orders"],
        extra={"rule": "must be 1 to 32 characters", "normalize": clean_label},
    ),
]


def sort_labels(labels: list[Any]) -> list[Any]:
    """Return labels in the form in which they are stored: cleaned, each once, and sorted.

    Of labels that are equal without regard to case, the first stays. A list that is not valid (too
    long, or not of texts) is returned as it is.
    """
    if len(labels) > MAX_LABELS or not all(isinstance(label, str) for label in labels):
        return labels
    by_key: dict[str, str] = {}
    for label in map(clean_label, labels):
        by_key.setdefault(fold_label(label), label)
    return [by_key[key] for key in sorted(by_key)]


Labels = Annotated[
    list[Label],
    Meta(
        max_length=MAX_LABELS,
        description="Labels to find the mailing by, up to 10: compared without regard to case, each"
        " once, and sorted.",
        examples=[["orders", "January"]],
        extra={
            "rule": "must be a list of up to 10 labels of 1 to 32 characters",
            "normalize_list": sort_labels,
        },
    ),
]
OnUnknown = Annotated[
    Literal["retry", "hold"],
    Meta(
        description="What to do when delivery is unknown: `retry` sends the message again under"
        " the same id, `hold` does not.",
        extra={"rule": "must be retry or hold"},
    ),
]
Priority = Annotated[
    Literal["low", "normal", "high"],
    Meta(
        description="Share of the capacity while several mailings compete for it: `high` gets four"
        " times as much as `normal`, and `normal` four times as much as `low`. A mailing that"
        " competes with no other gets all of it. A change acts within about a second.",
        extra={"rule": "must be low, normal or high"},
    ),
]
NORMAL_WEIGHT = 4
"""Weight of a mailing with the priority `normal`."""
PRIORITY_WEIGHTS: dict[Priority, int] = {"low": 1, "normal": NORMAL_WEIGHT, "high": 16}
"""Weights of the priorities. Competing mailings share a gateway in proportion to their weights. The
steps are equal. They are large enough to notice, and small enough that a low mailing beside a high
one still gets 6 % of the capacity."""
MIN_RATE, MAX_RATE = 0.01, 10_000.0
"""Range of the rate of a mailing, in messages a second."""
Rate = Annotated[
    float,
    Meta(
        ge=MIN_RATE,
        le=MAX_RATE,
        description="Most messages a second of this mailing, from 0.01 to 10,000, over all workers"
        " and gateways together, retries included. They are spaced evenly: at 0.5, one every two"
        " seconds. A change acts within about a second.",
        examples=[20],
        extra={"rule": "must be a number from 0.01 to 10000, or null"},
    ),
]
Purpose = Annotated[
    Literal["marketing", "service"],
    Meta(
        description="`marketing` is not sent to clients who have opted out. `service` is sent to"
        " them too: only for messages that they need, such as a code or the state of an order."
        " It can be changed before the start only.",
        extra={"rule": "must be marketing or service"},
    ),
]


GatewayName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,31}(?!\n)$",
        description="The name of a configured gateway.",
        examples=["main"],
        extra={"rule": "must be the name of a gateway, or null"},
    ),
]
SenderName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=20,
        pattern=r"^[!-~]([ -~]*[!-~])?(?!\n)$",
        description="The name or number that clients see as the sender.",
        examples=["Acme"],
        extra={
            "rule": "must be 1 to 20 printable ASCII characters without a space at either end, or"
            " null"
        },
    ),
]
