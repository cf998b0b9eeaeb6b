"""Texts of a profile with placeholders, compiled: what can be computed before is constant."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple, cast
from urllib.parse import quote, quote_plus

import msgspec

from mailer.gateway.placeholders import (
    ACCOUNT_PLACEHOLDERS,
    JSON_VALUES,
    MAX_CACHED_TEXTS,
    MAY_BE_EMPTY,
    MESSAGE_PLACEHOLDERS,
    NUMBERS,
    OF_MAILING,
    PLACEHOLDER,
    URL_VALUES,
    SmsText,
    Value,
    needs_ucs2,
)
from mailer.gateway.protocol import OutgoingMessage

Piece = str | Value
"""A constant part of a request, or one that depends on the message."""
Check = Callable[[str, str], None]
"""Raises `ValueError` if a key of the account, given by name and value, cannot be used."""

encode_json = msgspec.json.Encoder().encode


class Escape(NamedTuple):
    """How values are written in a part of a request."""

    text: Callable[[str], str]
    values: Mapping[str, Value]
    """Placeholders of the message whose value is given here, and needs no escape."""


AS_IS = Escape(str, MESSAGE_PLACEHOLDERS)
IN_FORM = Escape(lru_cache(MAX_CACHED_TEXTS)(quote_plus), URL_VALUES)
IN_URL = Escape(lru_cache(MAX_CACHED_TEXTS)(partial(quote, safe="")), URL_VALUES)
IN_JSON = Escape(
    lru_cache(MAX_CACHED_TEXTS)(lambda text: encode_json(text)[1:-1].decode()), JSON_VALUES
)
"""Between quotation marks."""


class Texts(msgspec.Struct, frozen=True):
    """What the placeholders of a gateway's profile stand for, except those of the message."""

    account: Mapping[str, str]
    by_text: Mapping[str, SmsText] = {}
    with_callback: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return f"Texts({', '.join(self.account)})"  # no secrets

    __str__ = __repr__


def _accept(_name: str, _value: str) -> None:
    """Accept every value of the account."""


class Template:
    """A text with placeholders. Those of the account are replaced at once.

    `escape` is applied to the values of all placeholders, and to the text between them unless
    `keeps_text`; `check` is applied to the values of the account. Raises `ValueError` for a
    placeholder that has no value.
    """

    def __init__(
        self,
        text: str,
        texts: Texts,
        escape: Escape = AS_IS,
        check: Check = _accept,
        *,
        keeps_text: bool = False,
    ) -> None:
        self._check = check
        self._escape = escape
        self._parts: list[Piece] = []
        self._is_empty = not text
        self.may_be_empty = not text
        self.is_of_mailing = True
        """Whether the text is the same in all messages of a mailing."""
        self.needs_callback = False
        """Whether the text is empty without a URL for receipts."""
        position = 0
        between = AS_IS if keeps_text else escape
        for placeholder in PLACEHOLDER.finditer(text):
            self._add(between.text(text[position : placeholder.start()]))
            self._add_placeholder(placeholder[1], texts, is_optional=placeholder[2] == "?")
            position = placeholder.end()
        self._add(between.text(text[position:]))
        names = [placeholder[1] for placeholder in PLACEHOLDER.finditer(text)]
        self.is_number = len(self._parts) == len(names) == 1 and names[0] in NUMBERS
        """Whether the text is the number of one placeholder and nothing else."""

    def _add(self, text: str) -> None:
        if text and self._parts and isinstance(self._parts[-1], str):
            self._parts[-1] += text
        elif text:
            self._parts.append(text)

    def _add_placeholder(self, name: str, texts: Texts, *, is_optional: bool) -> None:
        if name in ACCOUNT_PLACEHOLDERS:
            if value := texts.account.get(name):
                self._check(name, value)
                self._add(self._escape.text(value))
            elif is_optional:
                self._is_empty = self.may_be_empty = True
            else:
                raise ValueError(f"needs {name}")
        elif name in texts.by_text:
            of_account = Texts(texts.account)
            gsm = Template(texts.by_text[name].gsm, of_account, self._escape, self._check)
            ucs2 = Template(texts.by_text[name].ucs2, of_account, self._escape, self._check)
            self.may_be_empty |= gsm.may_be_empty or ucs2.may_be_empty
            self.is_of_mailing &= gsm.is_of_mailing and ucs2.is_of_mailing
            self._parts.append(_by_text(value_of(gsm.pieces()), value_of(ucs2.pieces())))
        elif name in texts.with_callback:
            self.may_be_empty = self.needs_callback = True
            self.is_of_mailing = False
            with_callback = self._escape.text(texts.with_callback[name])
            self._parts.append(lambda message: with_callback if message.callback else "")
        else:
            self.may_be_empty |= name in MAY_BE_EMPTY
            self.needs_callback |= name == "callback"
            self.is_of_mailing &= name in OF_MAILING
            self._parts.append(self._value(name))

    def _value(self, name: str) -> Value:
        """Return the function that returns the escaped value of a placeholder of the message."""
        if name in self._escape.values:
            return self._escape.values[name]
        escape = self._escape.text
        # numbers need no escape
        value = cast("Callable[[OutgoingMessage], str]", MESSAGE_PLACEHOLDERS[name])
        return lambda message: escape(value(message))

    @property
    def constant(self) -> str | None:
        """The text, if it has no placeholder of the message."""
        if self._is_empty:
            return ""
        first = self._parts[0]
        return first if len(self._parts) == 1 and isinstance(first, str) else None

    def text(self, message: OutgoingMessage) -> str:
        """Return the text for a request; "" if a placeholder in it stands for an empty text."""
        if self._is_empty:
            return ""
        texts = []
        for part in self._parts:
            text = part if isinstance(part, str) else str(part(message))
            if not text:
                return ""
            texts.append(text)
        return "".join(texts)

    def pieces(self) -> list[Piece]:
        """Return the text as pieces of a request; one if it may be empty."""
        if self._is_empty:
            return [""]
        return [self.text] if self.may_be_empty and len(self._parts) > 1 else self._parts


def join(pieces: Iterable[Piece]) -> Piece:
    """Join pieces to one; they are formatted together, which is faster than to join them."""
    parts = list(pieces)
    values = [part for part in parts if not isinstance(part, str)]
    if not values:
        return "".join(map(str, parts))
    if len(parts) == 1:
        return values[0]
    form = "".join(part.replace("%", "%%") if isinstance(part, str) else "%s" for part in parts)
    match values:
        case [first]:  # for speed, no loop
            return lambda message: form % (first(message),)
        case [first, second]:
            return lambda message: form % (first(message), second(message))
        case [first, second, third]:
            return lambda message: form % (first(message), second(message), third(message))
        case _:

            def text(message: OutgoingMessage) -> str:
                texts = []
                for value in values:
                    texts.append(value(message))  # noqa: PERF401  # a comprehension would be slower
                return form % tuple(texts)

            return text


def value_of(pieces: Sequence[Piece]) -> Value:
    """Return the function that returns the joined pieces for a message."""
    piece = join(pieces)
    return (lambda _: piece) if isinstance(piece, str) else piece


def _by_text(gsm: Value, ucs2: Value) -> Value:
    """Return the function that returns one of two values, by the alphabet of the text."""
    return lambda message: (ucs2 if needs_ucs2(message.text) else gsm)(message)
