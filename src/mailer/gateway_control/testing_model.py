"""Test messages, which belong to no mailing and are counted nowhere, and their results."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self, assert_never

import msgspec
from msgspec import Meta

from mailer.client.model import Phone
from mailer.client.phone import normalize_phone
from mailer.errors import ConflictError, FieldError
from mailer.gateway.protocol import (
    Aborted,
    Accepted,
    Outcome,
    Rejected,
    TemporaryFailure,
    Unknown,
)
from mailer.mailing.field_types import Text
from mailer.validation import Input


class SingleMessage(Input, frozen=True, kw_only=True):
    """A test message, which belongs to no mailing."""

    phone: Annotated[Phone, Meta(extra={"normalize": normalize_phone})]
    text: Text


class SingleResult(msgspec.Struct, frozen=True):
    """What the gateway answered to a test message."""

    outcome: Literal["accepted", "rejected", "failed", "unknown"]
    reason: str | None = None
    gateway_message_id: str | None = None

    @classmethod
    def of(cls, outcome: Outcome) -> Self:
        """Return an outcome as API and pages show it."""
        match outcome:
            case Accepted(gateway_message_id=gateway_message_id):
                return cls("accepted", gateway_message_id=gateway_message_id)
            case Rejected(reason=reason):
                return cls("rejected", reason)
            case TemporaryFailure(reason=reason):
                return cls("failed", reason)
            case Aborted():
                return cls("failed", "timeout")
            case Unknown(reason=reason):
                return cls("unknown", reason)
            case _:
                assert_never(outcome)


# ---- the test of a mailing ------------------------------------------------------------------

MAX_TEST_PHONES = 5
TEST_MARK = "TEST: "
"""Stands before the text of a test. All its characters are in the alphabet of SMS that has the most
room (GSM 7-bit), so it changes the alphabet of no text."""


class MailingTestRepeatedError(ConflictError):
    """An earlier attempt of this request may have sent the test messages, so it is not repeated."""


class MailingTest(Input, frozen=True, kw_only=True):
    """The phones to which a mailing is sent as a test."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"phones": ["79161234567"]}

    phones: Annotated[
        list[Phone],
        Meta(
            min_length=1,
            max_length=MAX_TEST_PHONES,
            description="1 to 5 different phones. They need not be those of clients.",
            extra={"rule": "must be 1 to 5 phones, such as 79161234567"},
        ),
    ]

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # phones do not depend on the moment
        """Reject a phone that is given twice."""
        phones = values.get("phones", ())
        if len(set(phones)) < len(phones):
            yield FieldError("phones", "must not name a phone twice")


PhoneOutcome = Literal["accepted", "rejected", "failed", "unknown", "not_sent"]
DETAILS: dict[PhoneOutcome, str] = {
    "accepted": "The gateway accepted the message.",
    "rejected": "The gateway rejected the message.",
    "failed": "The gateway did not accept the message.",
    "unknown": "The gateway may have accepted the message.",
    "not_sent": "The message was not sent: the gateway is not used now.",
}
NOT_SENT_DETAILS = {
    "opted_out": "The message was not sent: the phone has opted out of marketing messages.",
    "no_gateway": "The message was not sent: no gateway takes messages to this phone.",
    "too_many_parts": "The message was not sent: it has more parts than the gateway takes.",
    "missing_field": "The message was not sent: no client with this phone has the fields of the"
    " text. Add them to the client, or write defaults.",
    "text_too_long": "The message was not sent: it is too long with the client's fields.",
    "rate_limit": "The message was not sent: the rate of the gateway permits none soon.",
    "restored": "The message was not sent: the database was restored, and sending is not allowed.",
}


class PhoneResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of the test message to one phone."""

    phone: Annotated[
        str, Meta(description="Its last two digits. The results are in the order of the request.")
    ]
    outcome: Annotated[
        PhoneOutcome,
        Meta(
            description="What the gateway answered; `not_sent`: mailer did not send it. `failed`:"
            " the gateway may accept it later, but mailer does not try again."
        ),
    ]
    reason: Annotated[
        str | None,
        Meta(
            description="As of a message; `missing_field`: no client with this phone has the fields"
            " of the text; `opted_out`: it is a marketing mailing, and the phone has opted out."
            " Null if it was accepted."
        ),
    ]
    detail: Annotated[str, Meta(description="The outcome in words.")]
    gateway: Annotated[str | None, Meta(description="Null if no gateway takes it.")]
    gateway_message_id: str | None

    @classmethod
    def not_sent(cls, phone: str, reason: str, gateway: str | None = None) -> Self:
        """Return the result of a message that was not sent to `phone`."""
        detail = NOT_SENT_DETAILS.get(reason, DETAILS["not_sent"])
        return cls(
            phone=_mask(phone),
            outcome="not_sent",
            reason=reason,
            detail=detail,
            gateway=gateway,
            gateway_message_id=None,
        )

    @classmethod
    def of(cls, phone: str, gateway: str, outcome: Outcome) -> Self:
        """Return the result of a message that was sent to `phone` through `gateway`."""
        result = SingleResult.of(outcome)
        return cls(
            phone=_mask(phone),
            outcome=result.outcome,
            reason=result.reason,
            detail=DETAILS[result.outcome],
            gateway=gateway,
            gateway_message_id=result.gateway_message_id,
        )


def _mask(phone: str) -> str:
    """Return a phone as an answer shows it that is stored for repeats of its request."""
    return f"***{phone[-2:]}"


class MailingTestResults(msgspec.Struct, frozen=True):
    """A result for each phone, in the order of the request."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "results": [
            {
                "phone": "***67",
                "outcome": "accepted",
                "reason": None,
                "detail": DETAILS["accepted"],
                "gateway": "main",
                "gateway_message_id": "SM1f0e8ae6ade43cb3c0ce4525424e404f",
            }
        ]
    }

    results: list[PhoneResult]
