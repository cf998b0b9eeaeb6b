"""One rule of a profile: whether it matches a response of a gateway, and what that means."""

import contextlib
import re
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from http import HTTPStatus
from itertools import chain
from typing import Any, assert_never

import msgspec

from mailer.gateway.json_path import JsonPath
from mailer.gateway.profile import ResponsePart, WaitPart
from mailer.gateway.protocol import Accepted, Outcome, Rejected, TemporaryFailure, Unknown
from mailer.gateway.response import MAX_RESPONSE_BODY_BYTES, find_charset
from mailer.json_input import JsonError, read_json

MAX_REASON_VALUE_LENGTH = 32
"""Characters of a response's value in a reason."""
MAX_MESSAGE_ID_LENGTH = 128
"""Characters of a gateway's message id; longer ones are cut."""
MAX_NUMBER_LENGTH = 12
"""Digits of a number of seconds that are read; pauses are limited later anyway."""
SECONDS_BY_UNIT = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3_600.0}
ASKING_ALL = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
"""Statuses whose header Retry-After concerns all messages."""
JSON_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Raised by msgspec for what is no JSON, or not of the expected type."""
NO_JSON = object()
"""In place of a JSON document when a body is none."""


class Response(msgspec.Struct, dict=True):
    """A response of a gateway, as far as it was read."""

    status: int
    body: bytes
    retry_after: float | None = None
    """Seconds that a header Retry-After asks to wait."""
    content_type: str = ""
    """The header Content-Type."""

    @cached_property
    def text(self) -> str:
        """The body as text; bytes that are none are replaced."""
        return self.body.decode(find_charset(self.content_type), errors="replace")

    def document(self) -> object:
        """Return the body as JSON; `NO_JSON` if it is none."""
        try:
            return _decode_json(self.body)
        except JSON_ERRORS:
            try:
                return _read_json(self.body)
            except JsonError:
                return NO_JSON


_decode_json = msgspec.json.Decoder().decode
_read_json = partial(read_json, shape=Any, limit=MAX_RESPONSE_BODY_BYTES, is_lenient=True)


class ResponseRule:
    """One rule of a profile."""

    def __init__(self, part: ResponsePart, path: Callable[[str], JsonPath]) -> None:
        self._part = part
        self._statuses = _statuses_of(part)
        self.path = path(part.path) if part.path else None
        self._is_exact = part.exact
        self._values = set(map(_key if part.exact else scalar_text, part.values or ()))
        self._pattern = re.compile(part.pattern) if part.pattern else None
        self._id = path(part.id) if part.id else None
        self._id_pattern = re.compile(part.id_pattern) if part.id_pattern else None
        self._wait = _Wait(part.wait, path) if part.wait else None
        self.is_acceptance = part.then == "accepted"
        self.needs_json = any((part.path, part.id, part.wait and part.wait.path))
        self.needs_text = any(
            (
                part.pattern and not part.path,
                part.id_pattern,
                part.wait and not part.wait.path,
            )
        )
        self.needs_body = self.needs_json or self.needs_text

    def matches_status(self, status: int) -> bool:
        """Return whether the rule is for responses with this status."""
        return self._statuses is None or status in self._statuses

    def match(self, response: Response, found: list[object]) -> str | None:
        """Return which of the rule's values is in a response, as text; "" if the rule has none.

        Return None if the rule does not match. `response` has a status that the rule is for, and
        `found` is at the rule's path. Other values of a response are not returned: they may contain
        a phone, and there is no limit to their number.
        """
        if self.path is None:
            if self._pattern is None:
                return ""
            found = [response.text]
        values, pattern = self._values, self._pattern
        matching: str | None = None
        for value in found:
            text = value if isinstance(value, str) else scalar_text(value)
            if (not values or (_key(value) if self._is_exact else text) in values) and (
                pattern is None or pattern.search(text) is not None
            ):
                matching = text if matching is None else matching
            elif self._part.every:
                return None
        return "" if matching and not values else matching

    def outcome(
        self, response: Response, document: object, found: list[object], matched: str
    ) -> Outcome:
        """Return the outcome of a response that the rule matches.

        `found` is what is at the rule's path, and `matched` is from `match`.
        """
        part = self._part
        if part.then == "accepted" or part.then == "duplicate":  # noqa: PLR1714  # for mypy
            return Accepted(self._message_id(response, document, found))
        value = re.sub(r"[^0-9A-Za-z_.-]+", "_", matched)[:MAX_REASON_VALUE_LENGTH]
        wait = response.retry_after
        if self._wait is not None:
            wait = self._wait.seconds(response, document) or wait
        default = f"code_{value}" if value else f"http_{response.status}"
        match part.then:
            case "rejected":
                reason = part.reason or f"rejected_{value or response.status}"
                return Rejected(reason, other_gateways=part.other_gateways)
            case "opted_out":
                return Rejected("opted_out", is_opt_out=True)
            case "temporary" | "account":
                asks_all = response.status in ASKING_ALL and bool(wait)
                if part.path or part.pattern:  # the body says more than the status
                    default = part.trouble or default
                return TemporaryFailure(
                    part.reason or default,
                    wait,
                    affects_all=part.then == "account" or part.whole_gateway or asks_all,
                    trouble=part.trouble,
                )
            case "unknown":
                return Unknown(part.reason or default)
            case "partly_accepted":
                return Unknown(part.reason or "partly_accepted", is_final=True)
            case _:
                assert_never(part.then)

    def _message_id(self, response: Response, document: object, found: list[object]) -> str | None:
        """Return the gateway's message id; several are joined by commas. See `outcome`.

        Characters that are not printable are removed: the database stores neither NUL nor lone
        surrogates, and control characters could change a terminal.
        """
        ids: str | None = ""
        if self._id is not None:
            if self._id is not self.path:
                found = self._id.find(document)
            ids = scalar_text(found[0]) if len(found) == 1 else _join_texts(found)
        elif self._id_pattern is not None and (match := self._id_pattern.search(response.text)):
            ids = match[1]
        ids = (ids or "")[:MAX_MESSAGE_ID_LENGTH]
        return (ids if ids.isprintable() else "".join(filter(str.isprintable, ids))) or None


def _join_texts(values: Iterable[object]) -> str:
    return ",".join(filter(None, map(scalar_text, values)))


class _Wait:
    """Where a body says how long to wait."""

    def __init__(self, part: WaitPart, path: Callable[[str], JsonPath]) -> None:
        self._path = path(part.path) if part.path else None
        self._pattern = re.compile(part.pattern)
        self._unit = SECONDS_BY_UNIT[part.unit]

    def seconds(self, response: Response, document: object) -> float | None:
        texts = [response.text] if self._path is None else self._path.find(document)
        for text in texts:
            if found := self._pattern.search(scalar_text(text)):
                with contextlib.suppress(ValueError):
                    seconds = float(found[1][:MAX_NUMBER_LENGTH]) * self._unit
                    return seconds if seconds > 0 else None  # not a number is not above 0
        return None


def _statuses_of(part: ResponsePart) -> frozenset[int] | None:
    """Return the status codes of a rule; None for all."""
    if part.status is None:
        # a rule that accepts is never for the status of a failure
        return frozenset(_expand("2xx")) if part.then == "accepted" else None
    statuses = part.status if isinstance(part.status, list) else [part.status]
    return frozenset(chain.from_iterable(map(_expand, statuses)))


def _expand(status: int | str) -> Iterable[int]:
    """Return the status codes that a status of a profile stands for, such as 400 to 499 for 4xx."""
    text = str(status)
    if text.endswith("xx"):
        return range(int(text[0]) * 100, int(text[0]) * 100 + 100)
    return (int(text),)


def scalar_text(value: object) -> str:
    """Return a value of a JSON document as text; "" for null, lists and objects.

    A whole number is written without a fraction, so that 0, 0.0 and "0" are the same text.
    """
    if isinstance(value, str):
        return value
    if type(value) is int:  # for speed, first; it is no bool
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value) if value.is_integer() else value)
    return ""


def _key(value: object) -> object:
    """Return what is equal for equal values; numbers and texts are never equal."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return (type(value), scalar_text(value))
