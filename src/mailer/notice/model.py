"""Types and pure rules of notices: what they tell, who wants them, and when they are due."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from mailer.client.model import TimeZone, known_zones
from mailer.errors import ConflictError, FieldError
from mailer.mail.smtp_config import normalize_address
from mailer.statuses import MessageStatus
from mailer.validation import STORABLE, Input

NoticeChoice = Literal["mailing_unreached", "mailing_held", "gateway_trouble"]
"""What a user can choose to get a mail about."""
NOTICE_CHOICES: tuple[NoticeChoice, ...] = get_args(NoticeChoice)
NoticeKind = Literal["mailing_unreached", "mailing_held", "gateway_down", "gateway_up", "test"]
"""What one notice tells."""
Language = Literal["en", "ru"]
"""A language of the mails; they are those of the pages."""

REPORT_AFTER = timedelta(minutes=5)
"""Trouble is reported when it has lasted so long,"""
OVER_AFTER = timedelta(minutes=2)
"""and it is over when it has not been seen for so long. So trouble that stops for a moment goes
on, and a gateway that changes between up and down is reported once."""
REPORT_AGAIN_AFTER = timedelta(hours=1)
"""The same gateway or mailing is reported again after this time at the earliest."""
DIGEST_TIME = timedelta(minutes=2)
"""Mailings that end within this time are reported together."""
MIN_MAIL_PAUSE = timedelta(minutes=5)
"""Least time between two mails to a user; what happens meanwhile is in the next one."""
TEST_PAUSE = timedelta(minutes=1)
"""Least time between an attempt to send a mail and a test mail to the same user."""
NOTICE_RETENTION = timedelta(days=3)
"""Notices that could not be mailed for so long are dropped."""
MAX_NOTICES_PER_MAIL = 50
MAX_DESCRIBED = 20
"""Most mailings that a mail describes; of the others it says how many they are."""
MIN_MAIL_ADDRESS_LENGTH, MAX_MAIL_ADDRESS_LENGTH = 3, 254

EXPECTED_REASONS = frozenset(
    {"opted_out", "contact_cap", "client_deleted", "filter_changed", "mailing_cancelled"}
)
"""Reasons of cancelled messages that are not reported: a client, a user or a setting has decided
so."""

ADDRESS_RULE = "must be a mail address, such as ann@example.org"


class NoAddressError(ConflictError):
    """The user has no mail address for notices; save one first."""


class MailTooSoonError(ConflictError):
    """A mail was sent less than a minute ago; try again in a minute."""


class NoticeSettings(Input, frozen=True, kw_only=True):
    """The mail address of a user, and the notices that the user wants."""

    mail: Annotated[
        str,
        Meta(max_length=MAX_MAIL_ADDRESS_LENGTH, pattern=STORABLE, extra={"rule": ADDRESS_RULE}),
    ]
    """Empty: no mails at all."""
    kinds: Annotated[
        list[NoticeChoice], Meta(extra={"rule": f"must be of {', '.join(NOTICE_CHOICES)}"})
    ]
    language: Annotated[Language, Meta(extra={"rule": "must be en or ru"})]
    time_zone: TimeZone

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # they do not depend on the moment
        """Reject a wrong address, notices without an address, and unknown time zones."""
        mail, kinds = values.get("mail"), values.get("kinds")
        if mail and not is_address(mail):
            yield FieldError("mail", ADDRESS_RULE)
        elif mail is not None and not mail.strip() and kinds:
            yield FieldError("mail", "is required for the notices that are chosen")
        if "time_zone" in values and values["time_zone"] not in known_zones():
            yield FieldError("time_zone", "must be an IANA time zone, such as Europe/Moscow")

    @property
    def address(self) -> str | None:
        """The address in its normal form; None without one."""
        return normalize_address(self.mail) if self.mail.strip() else None


def is_address(text: str) -> bool:
    """Return whether a text is a mail address, or blank."""
    if not text.strip():
        return True
    address = normalize_address(text)
    return (
        address is not None and MIN_MAIL_ADDRESS_LENGTH <= len(address) <= MAX_MAIL_ADDRESS_LENGTH
    )


class NoticeRecipient(msgspec.Struct, frozen=True, kw_only=True):
    """A user who has a mail address for notices, and how sending to it goes."""

    user_id: int
    address: str
    kinds: list[NoticeChoice]
    language: Language
    time_zone: str
    attempted_at: datetime | None
    """The last attempt to send a mail; None before the first one."""
    sent_at: datetime | None
    failures: int
    """Consecutive failed attempts."""
    failure: str | None
    """Why the last attempt failed; None if it did not."""
    waiting: int
    """Notices that are not mailed yet."""


class NoticeSummary(msgspec.Struct, frozen=True):
    """How the sending of notices goes, over all users."""

    recipients: int
    """Users with an address."""
    failing: int
    """Those of them whose last mail was not sent."""
    failure: str | None
    """Why, for one of them."""
    waiting: int
    """Notices that are not mailed yet."""
    sent_at: datetime | None
    """The last mail that was sent."""


class UnreachedCount(msgspec.Struct, frozen=True):
    """How many clients a mailing did not reach, for one status and reason."""

    status: MessageStatus
    reason: str | None
    messages: int
