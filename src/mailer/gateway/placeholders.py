"""Placeholders in the texts of a profile, such as `{phone.plus}`, and what they stand for.

A placeholder of the message is replaced in each message. A placeholder of the account, such as
`{token}`, is replaced once, when the gateway's configuration is read.
"""

import re
from collections.abc import Callable, Collection
from datetime import timedelta
from functools import lru_cache

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
    """Return the end of the message's validity, as RFC 3339 in UTC with milliseconds."""
    if message.valid_from is None:
        return ""
    moment = message.valid_from + timedelta(seconds=message.validity)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1_000:03}Z"


MESSAGE_PLACEHOLDERS: dict[str, Value] = {
    "id": lambda message: str(message.id),
    "id.number": lambda message: message.id,
    "phone.digits": lambda message: message.phone,
    "phone.number": lambda message: int(message.phone),
    "phone.plus": lambda message: f"+{message.phone}",
    "phone.national": lambda message: message.phone[1:],
    "text": lambda message: message.text,
    "text.utf16_hex": lambda message: utf16_hex(message.text),
    "sender": lambda message: message.sender,
    "callback": lambda message: message.callback,
    "validity.milliseconds": lambda message: message.validity * 1_000,
    "validity.seconds": lambda message: message.validity,
    "validity.minutes": lambda message: max(1, message.validity // 60),
    "validity.hours": lambda message: max(1, message.validity // 3_600),
    "validity.until": _until,
}
"""Values of a message. The validity is the time left until the mailing's end, in whole units,
rounded down."""

MAY_BE_EMPTY: Collection[str] = frozenset({"sender", "callback", "validity.until"})
"""Placeholders of the message that may stand for an empty text."""
OF_ANY_CHARACTERS = frozenset({"text", "sender"})
"""Placeholders of the message whose value may have a character that a header cannot have."""
URL_SAFE: Collection[str] = MESSAGE_PLACEHOLDERS.keys() - {
    "text",
    "sender",
    "callback",
    "phone.plus",
    "validity.until",
}
"""Placeholders of the message whose value needs no escape in a URL."""
