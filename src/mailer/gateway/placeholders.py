"""Placeholders in the texts of a profile, such as `{phone.plus}`, and what they stand for.

A placeholder of the message is replaced in each message. A placeholder of the account, such as
`{token}`, is replaced once, when the gateway's configuration is read.
"""

import re
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter

import msgspec

from mailer.gateway.protocol import OutgoingMessage
from mailer.gateway.sms_parts import count_parts

PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_.]*)(\??)\}")
"""A placeholder's name, and a question mark if its value may be missing."""
BRACES = re.compile(r"\{[^{}]*\}")
"""A placeholder, or what looks like one: `{Text}` or `{ text }`."""

ACCOUNT_PLACEHOLDERS = ("url", "account", "username", "password", "token")
"""Keys of a gateway's configuration."""
ACCOUNT_KEYS = tuple(name for name in ACCOUNT_PLACEHOLDERS if name != "url")
"""Those that can be anywhere in a profile; `{url}` is the start of an address and nothing else."""

Value = Callable[[OutgoingMessage], str | int]
"""Returns the value of a placeholder for one message."""

MAX_CACHED_TEXTS = 256
"""Texts whose alphabet is remembered: those of the mailings that are being sent."""


class SmsText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Texts with placeholders: one for each alphabet that the message's text may need."""

    gsm: str
    """If all characters are in the alphabet GSM 03.38."""
    ucs2: str


@lru_cache(MAX_CACHED_TEXTS)
def needs_ucs2(text: str) -> bool:
    """Return whether a text has a character that the alphabet GSM 03.38 lacks."""
    return count_parts(text).encoding == "UCS-2"


@lru_cache(MAX_CACHED_TEXTS)
def utf16_hex(text: str) -> str:
    """Return a text in UTF-16, big endian without a byte order mark, as hexadecimal digits."""
    return text.encode("utf-16-be").hex().upper()


def _until(message: OutgoingMessage) -> str:
    """Return the end of the message's validity, as RFC 3339 in UTC with milliseconds.

    It is rounded down to a second.
    """
    if message.valid_from is None:
        return ""
    return _moment_text(int(message.valid_from.timestamp()) + message.validity)


@lru_cache(MAX_CACHED_TEXTS)
def _moment_text(timestamp: int) -> str:
    """Return a Unix timestamp as RFC 3339; the messages of a mailing have nearly the same."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


MESSAGE_PLACEHOLDERS: dict[str, Value] = {  # attrgetter is faster than a function
    "id": attrgetter("id"),
    "id.number": attrgetter("id"),
    "phone.digits": attrgetter("phone"),
    "phone.number": attrgetter("phone"),  # digits, the first of which is not 0
    "phone.plus": lambda message: f"+{message.phone}",
    "phone.national": lambda message: message.phone[1:],
    "text": attrgetter("text"),
    "text.utf16_hex": lambda message: utf16_hex(message.text),
    "sender": attrgetter("sender"),
    "callback": attrgetter("callback"),
    "validity.milliseconds": lambda message: message.validity * 1_000,
    "validity.seconds": attrgetter("validity"),
    "validity.minutes": lambda message: message.validity // 60 or 1,
    "validity.hours": lambda message: message.validity // 3_600 or 1,
    "validity.until": _until,
}
"""Values of a message. The validity is the time left until the mailing's end, in whole units,
rounded down."""

MAY_BE_EMPTY: Collection[str] = frozenset({"sender", "callback", "validity.until"})
"""Placeholders of the message that may stand for an empty text."""
OF_ANY_CHARACTERS = frozenset({"text", "sender"})
"""Placeholders of the message whose value may have a character that a header cannot have."""
OF_MAILING = frozenset({"text", "text.utf16_hex", "sender"})
"""Placeholders of the message that are the same in all messages of a mailing."""
NUMBERS: Collection[str] = frozenset(
    {
        "id.number",
        "phone.number",
        "validity.milliseconds",
        "validity.seconds",
        "validity.minutes",
        "validity.hours",
    }
)
"""Placeholders of the message whose value becomes a number in JSON, if it stands alone."""
JSON_VALUES: dict[str, Value] = {
    name: value
    for name, value in MESSAGE_PLACEHOLDERS.items()
    if name not in {"text", "sender", "callback"}
}
"""Values of a message that need no escape in JSON."""
URL_VALUES: dict[str, Value] = {
    **{name: value for name, value in JSON_VALUES.items() if name != "validity.until"},
    "phone.plus": lambda message: f"%2B{message.phone}",
}
"""Values of a message that need no escape in a URL or a form, or have one."""
