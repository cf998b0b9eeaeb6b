"""Decide by a profile's rules what a response of a gateway means."""

import contextlib
import re
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from http import HTTPStatus
from itertools import chain
from typing import Any, assert_never

import msgspec
from msgspec.structs import replace

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
NO_JSON = object()
"""In place of a JSON document when a body is none."""


class Response:
    """A response of a gateway, as far as it was read.

    `retry_after` is the number of seconds that a header Retry-After asks to wait, and
    `content_type` the header Content-Type.
    """

    def __init__(
        self, status: int, body: bytes, retry_after: float | None = None, content_type: str = ""
    ) -> None:
        self.status = status
        self.body = body
        self.retry_after = retry_after
        self.content_type = content_type

    @cached_property
    def text(self) -> str:
        """The body as text; bytes that are none are replaced."""
        return self.body.decode(find_charset(self.content_type), errors="replace")

    def document(self) -> object:
        """Return the body as JSON; `NO_JSON` if it is none."""
        try:
            return _decode_json(self.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            try:
                return _read_json(self.body)
            except JsonError:
                return NO_JSON


_decode_json = msgspec.json.Decoder().decode
_read_json = partial(read_json, shape=Any, limit=MAX_RESPONSE_BODY_BYTES, is_lenient=True)


class ResponseRules:
    """The rules of a profile, compiled. Raises `ValueError` for a wrong path or pattern.

    No outcome asks to wait for more than `max_wait` seconds, whatever a response says.
    `recognizes_repeats` says whether the gateway does not send a message twice that mailer repeats.
    """

    def __init__(
        self,
        parts: Sequence[ResponsePart],
        *,
        max_wait: float = 900.0,
        recognizes_repeats: bool = False,
    ) -> None:
        self._max_wait = max_wait
        self._recognizes_repeats = recognizes_repeats
        self._rules = [_Rule(part) for part in parts]
        self._needs_json = any(rule.needs_json for rule in self._rules)
        self._last_key: tuple[object, ...] = ()
        self._last_outcome: Outcome = TemporaryFailure("bad_response")
        self._needs_body: dict[int, bool] = {}
        """By status, as far as it was asked for."""

    def needs_body(self, status: int) -> bool:
        """Return whether the outcome of a response with this status may depend on its body."""
        needs_body = self._needs_body.get(status)
        if needs_body is None:
            needs_body = any(
                rule.needs_body and rule.matches_status(status) for rule in self._rules
            )
            self._needs_body[status] = needs_body
        return needs_body

    def outcome(self, response: Response) -> Outcome:
        """Return the outcome of a response.

        For speed, that of the last response is remembered: many gateways accept every message with
        the same few bytes.
        """
        key = (response.status, response.body, response.retry_after, response.content_type)
        if key != self._last_key:
            self._last_key, self._last_outcome = key, self._decide(response)
        return self._last_outcome

    def _decide(self, response: Response) -> Outcome:
        """Return the outcome of the first rule that matches; else by the status.

        Without a rule, a failure is temporary, so that no message is lost that the gateway did not
        refuse clearly.
        """
        document = response.document() if self._needs_json and response.body else NO_JSON
        for rule in self._rules:
            matched = rule.match(response, document)
            if matched is not None:
                return self._limit_wait(rule.outcome(response, document, matched))
        if any(rule.is_success(response.status) for rule in self._rules):
            return self._outcome_of_success(response, document)
        asks_all = response.status in ASKING_ALL and bool(response.retry_after)
        reason = f"http_{response.status}"
        return self._limit_wait(
            TemporaryFailure(reason, response.retry_after, affects_all=asks_all)
        )

    def _outcome_of_success(self, response: Response, document: object) -> Outcome:
        """Return the outcome of a response with the status of a success that no rule knows.

        Many gateways refuse with the status 200 and a document. Anything else may be an acceptance,
        and a gateway that does not recognize repeats would send the message twice.
        """
        is_refusal = response.status == HTTPStatus.OK and document is not NO_JSON
        if is_refusal or self._recognizes_repeats:
            return TemporaryFailure("bad_response")
        return Unknown("bad_response")

    def _limit_wait(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, TemporaryFailure) and outcome.retry_after is not None:
            return replace(outcome, retry_after=min(outcome.retry_after, self._max_wait))
        return outcome


class _Rule:
    """One rule of a profile."""

    def __init__(self, part: ResponsePart) -> None:
        self._part = part
        self._statuses = _statuses_of(part)
        self._path = JsonPath(part.path) if part.path else None
        self._values = {_key(value, is_exact=part.exact) for value in part.values or ()}
        self._pattern = re.compile(part.pattern) if part.pattern else None
        self._id = JsonPath(part.id) if part.id else None
        self._id_pattern = re.compile(part.id_pattern) if part.id_pattern else None
        self._wait = _Wait(part.wait) if part.wait else None
        self.needs_json = any((part.path, part.id, part.wait and part.wait.path))
        self.needs_body = any((self.needs_json, part.pattern, part.id_pattern, part.wait))

    def matches_status(self, status: int) -> bool:
        """Return whether the rule is for responses with this status."""
        return self._statuses is None or status in self._statuses

    def is_success(self, status: int) -> bool:
        """Return whether the rule accepts responses with this status."""
        return self._part.then == "accepted" and self.matches_status(status)

    def match(self, response: Response, document: object) -> str | None:
        """Return which of the rule's values is at its path, as text; "" for a rule without values.

        Return None if the rule does not match. Other values of a response are not returned: they
        may contain a phone, and there is no limit to their number.
        """
        if not self.matches_status(response.status):
            return None
        if self._path is None and self._pattern is None:
            return ""
        found = [response.text] if self._path is None else self._path.find(document)
        matching = [value for value in found if self._matches(value)]
        if not matching or (self._part.every and len(matching) < len(found)):
            return None
        return scalar_text(matching[0]) if self._values else ""

    def _matches(self, value: object) -> bool:
        if self._values and _key(value, is_exact=self._part.exact) not in self._values:
            return False
        return self._pattern is None or self._pattern.search(scalar_text(value)) is not None

    def outcome(self, response: Response, document: object, matched: str) -> Outcome:
        """Return the outcome of a response that the rule matches; `matched` is from `match`."""
        part = self._part
        value = re.sub(r"[^0-9A-Za-z_.-]+", "_", matched)[:MAX_REASON_VALUE_LENGTH]
        wait = response.retry_after
        if self._wait is not None:
            wait = self._wait.seconds(response, document) or wait
        default = f"code_{value}" if value else f"http_{response.status}"
        match part.then:
            case "accepted" | "duplicate":
                return Accepted(self._message_id(response, document))
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

    def _message_id(self, response: Response, document: object) -> str | None:
        """Return the gateway's message id; several are joined by commas.

        Characters that are not printable are removed: the database stores neither NUL nor lone
        surrogates, and control characters could change a terminal.
        """
        found: Sequence[object] = ()
        if self._id is not None:
            found = self._id.find(document)
        elif self._id_pattern is not None and (match := self._id_pattern.search(response.text)):
            found = match.groups()[:1]
        ids = ",".join(filter(None, map(scalar_text, found)))
        return "".join(filter(str.isprintable, ids[:MAX_MESSAGE_ID_LENGTH])) or None


class _Wait:
    """Where a body says how long to wait."""

    def __init__(self, part: WaitPart) -> None:
        self._path = JsonPath(part.path) if part.path else None
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
    match value:
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
        case int() | float():
            return str(value)
        case str():
            return value
        case _:
            return ""


def _key(value: object, *, is_exact: bool) -> object:
    """Return what is equal for equal values; numbers and texts are never equal if exact."""
    if not is_exact:
        return scalar_text(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return (type(value), scalar_text(value))
