"""Build the HTTP request for a message from a profile; what can be computed before is constant."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any
from urllib.parse import quote, quote_plus

import msgspec

from mailer.gateway.placeholders import (
    ACCOUNT_PLACEHOLDERS,
    MAX_CACHED_TEXTS,
    MAY_BE_EMPTY,
    MESSAGE_PLACEHOLDERS,
    PLACEHOLDER,
    URL_SAFE,
    SmsText,
    Value,
    needs_ucs2,
)
from mailer.gateway.profile import RequestPart
from mailer.gateway.protocol import OutgoingMessage
from mailer.urls import GatewayUrl

Piece = bytes | Callable[[OutgoingMessage], bytes]
"""A constant part of a request, or one that depends on the message."""
TemplateOf = Callable[[str], "Template"]
"""Returns the template of a text of the profile."""
Escape = Callable[[str], str]
Check = Callable[[str, str], None]
"""Raises `ValueError` if a key of the account, given by name and value, cannot be used."""

CONTENT_TYPES = {"json": "application/json", "form": "application/x-www-form-urlencoded"}
"""By the `body` of a profile."""

_escape_form = lru_cache(MAX_CACHED_TEXTS)(quote_plus)
_escape_url = lru_cache(MAX_CACHED_TEXTS)(partial(quote, safe=""))
_encode_json = msgspec.json.Encoder().encode


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

    `escape` is applied to the values of all placeholders, but not to the text between them, and
    `check` to those of the account. Raises `ValueError` for a placeholder that has no value.
    """

    def __init__(
        self, text: str, texts: Texts, check: Check = _accept, escape: Escape | None = None
    ) -> None:
        self._check = check
        self._escape = escape
        self._parts: list[str | Value] = []
        """Constant texts, and functions that return a text or number."""
        self._is_empty = not text
        self.may_be_empty = not text
        position = 0
        for placeholder in PLACEHOLDER.finditer(text):
            self._add(text[position : placeholder.start()])
            self._add_placeholder(placeholder[1], texts, is_optional=placeholder[2] == "?")
            position = placeholder.end()
        self._add(text[position:])

    def _add(self, text: str) -> None:
        if text and self._parts and isinstance(self._parts[-1], str):
            self._parts[-1] += text
        elif text:
            self._parts.append(text)

    def _add_placeholder(self, name: str, texts: Texts, *, is_optional: bool) -> None:
        if name in ACCOUNT_PLACEHOLDERS:
            if value := texts.account.get(name):
                self._check(name, value)
                self._add(self._escape(value) if self._escape else value)
            elif is_optional:
                self._is_empty = self.may_be_empty = True
            else:
                raise ValueError(f"needs {name}")
        elif name in texts.by_text:
            gsm = Template(texts.by_text[name].gsm, Texts(texts.account), self._check)
            ucs2 = Template(texts.by_text[name].ucs2, Texts(texts.account), self._check)
            self.may_be_empty |= gsm.may_be_empty or ucs2.may_be_empty
            self._add_value(
                lambda message: (ucs2 if needs_ucs2(message.text) else gsm).text(message)
            )
        elif name in texts.with_callback:
            self.may_be_empty = True
            with_callback = texts.with_callback[name]
            self._add_value(lambda message: with_callback if message.callback else "")
        else:
            self.may_be_empty |= name in MAY_BE_EMPTY
            self._add_value(MESSAGE_PLACEHOLDERS[name], is_safe=name in URL_SAFE)

    def _add_value(self, value: Value, *, is_safe: bool = False) -> None:
        """Add what depends on the message; a value that is safe needs no escape."""
        escape = self._escape
        if escape is None or is_safe:
            self._parts.append(value)
        else:
            self._parts.append(lambda message: escape(str(value(message))))

    @property
    def constant(self) -> str | None:
        """The text, if it has no placeholder of the message."""
        if self._is_empty:
            return ""
        first = self._parts[0]
        return first if len(self._parts) == 1 and isinstance(first, str) else None

    @property
    def single(self) -> Value | None:
        """The value, if the text is one placeholder of the message and nothing else."""
        first = self._parts[0] if len(self._parts) == 1 else ""
        return None if isinstance(first, str) else first

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

    def piece(self, escape: Escape) -> Piece:
        """Return the escaped text as a piece of a request."""
        constant, single = self.constant, self.single
        if constant is not None:
            return escape(constant).encode()
        if single is not None:  # for speed: a value alone needs no join
            return lambda message: escape(str(single(message))).encode()
        return lambda message: escape(self.text(message)).encode()


class RequestTemplate:
    """The HTTP requests of a gateway, compiled from its profile and its account.

    `url` is the address of the API. Its query is kept. Its user and password are sent as Basic
    authentication, unless the profile defines an authentication. `headers` are added to those of
    the profile. `has_whole_url` is for a proxy that forwards requests: the first line has the whole
    URL, not only the path. Raises `ValueError`, which names the key of the account, for a
    placeholder without a value and for a value that a request cannot have.
    """

    def __init__(
        self,
        part: RequestPart,
        url: GatewayUrl,
        texts: Texts,
        headers: Mapping[str, str],
        *,
        has_whole_url: bool = False,
    ) -> None:

        def template(text: str) -> Template:
            return Template(text, texts)

        def path_template(text: str) -> Template:
            return Template(text, texts, _check_in_path, _escape_url)

        self._has_body = part.body != "none"
        self._body = _Joined(_compile_body(part, template) if self._has_body else ())
        length = b"Content-Length: " if self._has_body else b""
        origin = url.before[: _path_start(url.before)] if has_whole_url else ""
        self._head = _Joined(
            [
                f"{part.method} {origin}".encode(),
                *_compile_target(part, url, template, path_template),
                b" HTTP/1.1\r\n",
                *_compile_headers(part, url, headers, texts),
                length,
            ]
        )

    def render(self, message: OutgoingMessage) -> bytes:
        """Return head and body of the request for a message, as they are written to the network."""
        head = self._head.render(message)
        if not self._has_body:
            return head + b"\r\n"
        body = self._body.render(message)
        return b"%s%d\r\n\r\n%s" % (head, len(body), body)


class _Joined:
    """Pieces joined to one format, which is faster than to join them for each message."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        parts = list(pieces)
        self._values = [part for part in parts if not isinstance(part, bytes)]
        self._format = b"".join(
            part.replace(b"%", b"%%") if isinstance(part, bytes) else b"%b" for part in parts
        )

    def render(self, message: OutgoingMessage) -> bytes:
        """Return the pieces for a message."""
        return self._format % tuple([value(message) for value in self._values])


def _path_start(url: str) -> int:
    """Return the position of the path in a URL."""
    return url.index("/", url.index("//") + 2)


def _compile_target(
    part: RequestPart, url: GatewayUrl, template: TemplateOf, path_template: TemplateOf
) -> list[Piece]:
    """Compile path and query. What follows `{url}` in the profile is added to the path of `url`."""
    addition = part.url.removeprefix("{url}")
    before, after = url.before, url.after
    if addition != "{id}":  # only the id alone can be a value in the query of the address
        before, _, query = f"{before}{after}".partition("?")
        after = f"?{query}" if query else ""
    path = before[_path_start(before) :]
    if addition.startswith("/"):
        path = path.rstrip("/")
    pieces: list[Piece] = [
        path.encode(),
        path_template(addition).piece(str),
        after.encode(),
    ]
    start = b"&" if "?" in path + after else b"?"
    return pieces + _compile_pairs(part.query, start, _escape_url, template)


def _compile_headers(
    part: RequestPart, url: GatewayUrl, headers: Mapping[str, str], texts: Texts
) -> list[Piece]:
    """Compile the headers. Each is there once, and left out if it is empty."""

    def template(text: str) -> Template:
        return Template(text, texts, _check_in_header)

    values = {name.lower(): (name, template(text)) for name, text in headers.items()}
    for name, text in part.headers.items():
        value = template(text)
        if value.constant != "":
            values[name.lower()] = (name, value)
    if part.body in CONTENT_TYPES:
        values.setdefault("content-type", ("Content-Type", template(CONTENT_TYPES[part.body])))
    if part.basic_auth is not None:
        user = Template(part.basic_auth.username, texts, _check_user).constant or ""
        password = Template(part.basic_auth.password, texts).constant or ""
        values["authorization"] = ("Authorization", template(_basic(user, password)))
    elif url.user is not None and "authorization" not in values:
        values["authorization"] = ("Authorization", template(_basic(url.user, url.password)))
    return [piece for name, value in values.values() for piece in _compile_header(name, value)]


def _compile_header(name: str, value: Template) -> list[Piece]:
    prefix, piece = f"{name}: ".encode(), value.piece(str)
    if value.may_be_empty:
        return [_unless_empty(prefix, piece, b"\r\n")]
    return [prefix, piece, b"\r\n"]


def _check_in_header(name: str, value: str) -> None:
    if not value.isascii() or not value.isprintable():  # a line end would begin another header
        raise ValueError(f"{name}: must be one line of printable ASCII characters, for a header")


def _check_in_path(name: str, value: str) -> None:
    if value in {".", ".."}:  # a step in a path, also if it is escaped
        raise ValueError(f"{name}: must not be {value}, because it is a part of the address")


def _check_user(name: str, value: str) -> None:
    if ":" in value:
        raise ValueError(f"{name}: must have no colon, because the password would begin there")


def _basic(user: str, password: str) -> str:
    """Return the value of a header Authorization (RFC 7617)."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def _compile_body(part: RequestPart, template: TemplateOf) -> list[Piece]:
    if part.body == "form":
        return _compile_pairs(part.fields, b"", _escape_form, template)
    pieces, _ = _compile_json(part.fields, template)
    return pieces


def _compile_pairs(
    texts: Mapping[str, str], start: bytes, escape: Escape, template: TemplateOf
) -> list[Piece]:
    """Compile `name=value` pairs, joined by `&`, after `start`. Empty ones are left out."""
    required: list[Piece] = []
    optional: list[Piece] = []
    for name, text in texts.items():
        value = template(text)
        prefix = f"&{escape(name)}=".encode()
        if value.may_be_empty:
            optional.append(_unless_empty(prefix, value.piece(escape)))
        else:
            required += [prefix, value.piece(escape)]
    if required:
        required[0] = start + bytes(required[0])[1:]  # type: ignore[arg-type]  # the first prefix
        return required + optional
    return [_join_optional(start, optional)] if optional else []


def _unless_empty(prefix: bytes, piece: Piece, end: bytes = b"") -> Piece:
    """Return `piece` between `prefix` and `end`; the result is empty if `piece` is."""
    if isinstance(piece, bytes):
        return prefix + piece + end if piece else b""

    def render(message: OutgoingMessage) -> bytes:
        value = piece(message)
        return prefix + value + end if value else b""

    return render


def _join_optional(
    start: bytes, pieces: Sequence[Piece], end: bytes = b""
) -> Callable[[OutgoingMessage], bytes]:
    """Return the pieces, each of which starts with a separator, between `start` and `end`.

    The result is empty if all pieces are.
    """
    joined = _Joined(pieces)

    def render(message: OutgoingMessage) -> bytes:
        content = joined.render(message)
        return start + content[1:] + end if content else b""

    return render


def _compile_json(value: Any, template: TemplateOf) -> tuple[list[Piece], bool]:  # noqa: ANN401  # any value of TOML
    """Compile a value of a JSON document. Return its pieces, and whether it may be empty."""
    match value:
        case str():
            return _compile_json_text(template(value))
        case dict():
            entries = {
                f",{_encode_json(name).decode()}:".encode(): _compile_json(entry, template)
                for name, entry in value.items()
            }
            return _compile_json_entries(b"{", entries.items(), b"}")
        case list():
            return _compile_json_entries(
                b"[", [(b",", _compile_json(entry, template)) for entry in value], b"]"
            )
        case _:
            return [_encode_json(value)], False


def _compile_json_text(text: Template) -> tuple[list[Piece], bool]:
    """Compile a text; one that is a single placeholder of a number becomes a number."""
    if text.constant is not None:
        return [_encode_json(text.constant) if text.constant else b""], not text.constant
    if (single := text.single) is not None and not text.may_be_empty:
        return [lambda message: _encode_json(single(message))], False

    def render(message: OutgoingMessage) -> bytes:
        value = text.text(message)
        return _encode_json(value) if value else b""

    return [render], text.may_be_empty


def _compile_json_entries(
    opening: bytes,
    entries: Iterable[tuple[bytes, tuple[list[Piece], bool]]],
    closing: bytes,
) -> tuple[list[Piece], bool]:
    """Compile the entries of an object or a list, each with its prefix, which starts with a comma.

    An entry that is empty is left out, and an object or list without entries is empty itself.
    """
    required: list[Piece] = []
    optional: list[Piece] = []
    for prefix, (pieces, may_be_empty) in entries:
        if may_be_empty:
            optional.append(_unless_empty(prefix, _Joined(pieces).render))
        else:
            required += [prefix, *pieces]
    if required:
        required[0] = opening + bytes(required[0])[1:]  # type: ignore[arg-type]  # the first prefix
        return [*required, *optional, closing], False
    return [_join_optional(opening, optional, closing)], True
