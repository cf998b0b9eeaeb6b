"""Patterns of the values in a request, made from the texts of a profile."""

import re
from collections.abc import Callable, Mapping

import msgspec

from mailer.gateway.placeholders import ACCOUNT_KEYS, PLACEHOLDER

Found = dict[str, str | int]
"""What a request says of its message: `id`, `phone`, `text`, `sender`, `callback`, and `validity`
in seconds. A request for the status of messages has `ids`."""

_WHOLE_NUMBER = "[1-9][0-9]{0,18}"


def _read_utf16(digits: str) -> str:
    """Return the text of hexadecimal digits. Raises `ValueError` if they are no UTF-16."""
    return bytes.fromhex(digits).decode("utf-16-be")


class MessageValue(msgspec.Struct, frozen=True):
    """What a placeholder of the message stands for in a request."""

    pattern: str
    name: str | None = None
    """Name in `Found`; None for a value that nobody needs."""
    read: Callable[[str], str | int] = str
    is_number: bool = False
    """Whether it is a number where JSON has nothing else in its place."""


MESSAGE_VALUES = {
    "id": MessageValue(_WHOLE_NUMBER, "id", int),
    "id.number": MessageValue(_WHOLE_NUMBER, "id", int, is_number=True),
    "phone.digits": MessageValue("7[0-9]{10}", "phone", int),
    "phone.number": MessageValue("7[0-9]{10}", "phone", int, is_number=True),
    "phone.plus": MessageValue(r"\+7[0-9]{10}", "phone", int),
    "phone.national": MessageValue("[0-9]{10}", "phone", lambda digits: int(f"7{digits}")),
    "text": MessageValue("(?s:.{1,1600})", "text"),
    "text.utf16_hex": MessageValue("(?:[0-9A-F]{4}){1,1600}", "text", _read_utf16),
    "sender": MessageValue(".{1,20}", "sender"),
    "callback": MessageValue("https?://.+", "callback"),
    "validity.milliseconds": MessageValue(
        _WHOLE_NUMBER, "validity", lambda digits: int(digits) // 1_000, is_number=True
    ),
    "validity.seconds": MessageValue(_WHOLE_NUMBER, "validity", int, is_number=True),
    "validity.minutes": MessageValue(
        _WHOLE_NUMBER, "validity", lambda digits: int(digits) * 60, is_number=True
    ),
    "validity.hours": MessageValue(
        _WHOLE_NUMBER, "validity", lambda digits: int(digits) * 3_600, is_number=True
    ),
    "validity.until": MessageValue(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"),
}
"""By the names of the placeholders."""
POLL_VALUES = MESSAGE_VALUES | {"ids": MessageValue("[^,]{1,200}(?:,[^,]{1,200}){0,99}", "ids")}
"""With those that only a request for the status of messages has."""


def is_number(expected: object) -> bool:
    """Return whether a text of a profile is one placeholder that stands for a number in JSON."""
    placeholder = PLACEHOLDER.fullmatch(expected) if isinstance(expected, str) else None
    value = MESSAGE_VALUES.get(placeholder[1]) if placeholder else None
    return value is not None and value.is_number


class ValuePattern:
    """One value of a request, as the profile describes it.

    Keys of the account that are not in `account` may have any value. With `is_number`, the value
    must be a number of JSON.
    """

    def __init__(
        self, expected: object, account: Mapping[str, str], *, is_number: bool = False
    ) -> None:
        self._expected = expected
        self._account = account
        self._type = int if is_number else type(expected)
        self._values: list[MessageValue] = []
        """Those of the groups of the pattern."""
        self.is_credential = False
        """Whether it has keys of the account."""
        self.is_optional = False
        self._pattern = self._compile(expected) if isinstance(expected, str) else None

    def find(self, value: object) -> list[tuple[str, str | int]] | None:
        """Return names and values of the message; None if the value is not as expected.

        Raises `ValueError` if the text is in a wrong encoding.
        """
        if type(value) is not self._type:
            return None
        if self._pattern is None:
            return [] if value == self._expected else None
        match = self._pattern.fullmatch(str(value))
        if match is None:
            return None
        return [
            (value.name, value.read(text))
            for value, text in zip(self._values, match.groups(), strict=True)
            if value.name is not None
        ]

    def _compile(self, text: str) -> re.Pattern[str]:
        parts = []
        position = 0
        for placeholder in PLACEHOLDER.finditer(text):
            parts += [
                re.escape(text[position : placeholder.start()]),
                self._placeholder(placeholder[1], is_optional=bool(placeholder[2])),
            ]
            position = placeholder.end()
        return re.compile("".join([*parts, re.escape(text[position:])]))

    def _placeholder(self, name: str, *, is_optional: bool) -> str:
        """Return the pattern of a placeholder."""
        if name in ACCOUNT_KEYS:
            self.is_credential = True
            value = self._account.get(name)
            self.is_optional |= is_optional and value is None
            return "(?s:.+)" if value is None else re.escape(value)
        self.is_optional |= name == "sender"
        self._values.append(POLL_VALUES[name])
        return f"({POLL_VALUES[name].pattern})"
