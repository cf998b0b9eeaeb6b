"""The sandbox gateway's side of a profile: checks requests and finds the messages in them."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Literal

import msgspec

from mailer.gateway.placeholders import PLACEHOLDER, needs_ucs2
from mailer.gateway.profile import GatewayProfile, RequestPart
from mailer.gateway.sandbox_patterns import Found, ValuePattern, is_number
from mailer.gateway.sandbox_records import PollRequest, SandboxMessage
from mailer.gateway.sandbox_values import (
    DEFAULT_PATH,
    HttpRequest,
    Place,
    expected_values,
    received_values,
)
from mailer.json_input import JsonError, read_json

Alphabet = Literal["gsm", "ucs2", "any"]
_LAST_DIGITS = re.compile(r"[0-9]{1,20}$")


class JsonReader:
    """Reads requests of the kind `json`, faster than by its profile: benchmarks send many of them.

    `token` is the bearer token that it requires; None for no authentication.
    """

    def __init__(self, token: str | None) -> None:
        self._authorization = None if token is None else f"Bearer {token}"

    def read(self, request: HttpRequest) -> SandboxMessage | HTTPStatus:
        """Return the message, or the status that says what is wrong with the request."""
        if request.method != "POST":
            return HTTPStatus.METHOD_NOT_ALLOWED
        if self._authorization not in (None, request.headers.get("Authorization")):
            return HTTPStatus.UNAUTHORIZED
        if not request.target.startswith(DEFAULT_PATH):
            return HTTPStatus.NOT_FOUND
        try:
            message = read_json(request.body, _JsonMessage, limit=len(request.body))
        except JsonError:
            return HTTPStatus.BAD_REQUEST
        is_same_id = request.target == f"{DEFAULT_PATH}{message.id}"
        return message if is_same_id else HTTPStatus.BAD_REQUEST


class _JsonMessage(SandboxMessage, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The body of a request of the kind `json`."""

    id: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    phone: Annotated[int, msgspec.Meta(ge=70_000_000_000, le=79_999_999_999)]
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=1_600)]
    sender: Annotated[str, msgspec.Meta(max_length=0)] = ""
    callback: Annotated[str, msgspec.Meta(pattern="^https?://")] = ""


class ProfileReader:
    """Reads the requests that a profile describes.

    Keys of the account that are not in `account` may have any value.
    """

    def __init__(self, profile: GatewayProfile, account: Mapping[str, str]) -> None:
        self._validity = profile.limits.validity
        self._messages = _PartReader(profile.request, profile, account)
        self._balance = self._poll = None
        if profile.balance is not None:
            self._balance = _PartReader(profile.balance.request, profile, account)
        if profile.poll is not None:
            self._poll = _PartReader(profile.poll.request, profile, account)

    def read(self, request: HttpRequest) -> SandboxMessage | PollRequest | HTTPStatus:
        """Return what a request asks for, or the status that says what is wrong with it.

        The status is 200 for a request for the balance.
        """
        found = self._messages.read(request)
        if not isinstance(found, HTTPStatus):
            return self._read_message(found)
        for part in (self._balance, self._poll):
            if part is None or found == HTTPStatus.UNAUTHORIZED:
                continue
            other = part.read(request)
            if not isinstance(other, HTTPStatus):
                return HTTPStatus.OK if part is self._balance else _read_poll(other)
            if other == HTTPStatus.UNAUTHORIZED:
                found = other
        return found

    def _read_message(self, found: Found) -> SandboxMessage | HTTPStatus:
        validity = int(found.get("validity", self._validity.min))
        if self._validity.limit(validity) != validity:
            return HTTPStatus.BAD_REQUEST
        message_id, phone, text = found.get("id"), int(found["phone"]), str(found["text"])
        return SandboxMessage(
            id=None if message_id is None else int(message_id),
            phone=phone,
            text=text,
            sender=str(found.get("sender", "")),
            callback=str(found.get("callback", "")),
        )


def _read_poll(found: Found) -> PollRequest | HTTPStatus:
    """Return the ids in a request for the status of messages.

    An id of the gateway ends with the number that makes it unique.
    """
    if "ids" not in found:
        return PollRequest((int(found["id"]),))
    numbers = [_LAST_DIGITS.search(each) for each in str(found["ids"]).split(",")]
    return PollRequest(tuple(int(number[0]) for number in numbers if number))


class _PartReader:
    """Reads the requests that a part of a profile describes.

    What a request must contain depends on the alphabet of its text, and on whether it asks for
    receipts: it must have one of up to four shapes.
    """

    def __init__(
        self, part: RequestPart, profile: GatewayProfile, account: Mapping[str, str]
    ) -> None:
        self._part = part
        self._header_names = [
            str(place[1]) for place in expected_values(part) if place[0] == "header"
        ]
        alphabets: tuple[Alphabet, ...] = ("gsm", "ucs2") if profile.by_text else ("any",)
        self._shapes = [
            _Shape(part, account, alphabet, _definitions(profile, alphabet, callback=callback))
            for callback in (False, True)
            for alphabet in alphabets
        ]

    def read(self, request: HttpRequest) -> Found | HTTPStatus:
        """Return what is found in a request, or the status that says what is wrong with it."""
        if request.method != self._part.method:
            return HTTPStatus.METHOD_NOT_ALLOWED
        found: Found | HTTPStatus = HTTPStatus.BAD_REQUEST
        try:
            values = received_values(request, self._part, self._header_names)
            for shape in self._shapes:
                found = shape.find(values)
                if not isinstance(found, HTTPStatus):
                    break
        except ValueError:
            return HTTPStatus.BAD_REQUEST
        return found


class _Shape:
    """The values of a request for a text in an alphabet."""

    def __init__(
        self,
        part: RequestPart,
        account: Mapping[str, str],
        alphabet: Alphabet,
        definitions: Mapping[str, str],
    ) -> None:
        self._alphabet = alphabet
        is_json = part.body == "json"
        patterns = [
            (place, ValuePattern(defined, account, is_number=is_json and is_number(expected)))
            for place, expected in expected_values(part).items()
            if (defined := _define(expected, definitions)) != "" or place[0] == "path"
        ]
        # a wrong path is no matter of credentials; these are checked before the rest
        patterns.sort(key=lambda each: 1 if each[1].is_credential else 2 * (each[0][0] != "path"))
        self._patterns = dict(patterns)

    def find(self, values: Mapping[Place, object]) -> Found | HTTPStatus:
        """Return what is found in the values of a request, or the status that refuses it.

        Raises `ValueError` for a text in a wrong encoding.
        """
        all_found: Found = {}
        for place, pattern in self._patterns.items():
            if place not in values and pattern.is_optional:
                continue
            found = pattern.find(values[place]) if place in values else None
            if found is None or any(all_found.setdefault(*item) != item[1] for item in found):
                return HTTPStatus.UNAUTHORIZED if pattern.is_credential else HTTPStatus.BAD_REQUEST
        if values.keys() - self._patterns.keys():
            return HTTPStatus.BAD_REQUEST
        return all_found if self._fits(all_found.get("text")) else HTTPStatus.BAD_REQUEST

    def _fits(self, text: object) -> bool:
        """Return whether a text has the alphabet of this shape."""
        if self._alphabet == "any" or not isinstance(text, str):
            return True
        return needs_ucs2(text) == (self._alphabet == "ucs2")


def _definitions(
    profile: GatewayProfile, alphabet: Alphabet, *, callback: bool
) -> Mapping[str, str]:
    """Return what the placeholders stand for that a profile defines, with or without receipts."""
    definitions = dict(profile.with_callback)
    if not callback:
        definitions = dict.fromkeys((*definitions, "callback"), "")
    by_text = {
        name: str(_define(getattr(texts, alphabet), definitions))
        for name, texts in profile.by_text.items()
    }
    return definitions | by_text


def _define(expected: object, definitions: Mapping[str, str]) -> object:
    """Return a text of the profile with the placeholders that the profile defines replaced.

    It is empty if one of them stands for an empty text, and then left out of a request. A value
    that is no text is returned as it is.
    """
    if not isinstance(expected, str):
        return expected
    if any(definitions.get(name) == "" for name, _ in PLACEHOLDER.findall(expected)):
        return ""
    return PLACEHOLDER.sub(lambda found: definitions.get(found[1], found[0]), expected)
