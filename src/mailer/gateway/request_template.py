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

_escape_form = lru_cache(MAX_CACHED_TEXTS)(quote_plus)
_escape_url = lru_cache(MAX_CACHED_TEXTS)(partial(quote, safe=""))
_encode_json = msgspec.json.Encoder().encode


class Texts(msgspec.Struct, frozen=True):
    """What the placeholders of a gateway's profile stand for, except those of the message."""

    account: Mapping[str, str]
    by_text: Mapping[str, SmsText] = {}
    with_callback: Mapping[str, str] = {}


class Template:
    """A text with placeholders. Those of the account are replaced at once.

    Raises `ValueError` for a placeholder that has no value.
    """

    def __init__(self, text: str, texts: Texts) -> None:
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
            if texts.account.get(name):
                self._add(texts.account[name])
            elif is_optional:
                self._is_empty = self.may_be_empty = True
            else:
                raise ValueError(f"needs {name}")
        elif name in texts.by_text:
            gsm = Template(texts.by_text[name].gsm, Texts(texts.account))
            ucs2 = Template(texts.by_text[name].ucs2, Texts(texts.account))
            self.may_be_empty |= gsm.may_be_empty or ucs2.may_be_empty
            self._parts.append(
                lambda message: (ucs2 if needs_ucs2(message.text) else gsm).text(message)
            )
        elif name in texts.with_callback:
            self.may_be_empty = True
            value = texts.with_callback[name]
            self._parts.append(lambda message: value if message.callback else "")
        else:
            self.may_be_empty |= name in MAY_BE_EMPTY
            self._parts.append(MESSAGE_PLACEHOLDERS[name])

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

    def piece(self, escape: Callable[[str], str]) -> Piece:
        """Return the escaped text as a piece of a request."""
        constant = self.constant
        if constant is not None:
            return escape(constant).encode()
        return lambda message: escape(self.text(message)).encode()


class RequestTemplate:
    """The HTTP requests of a gateway, compiled from its profile and its account.

    `url` is the address of the API. Its query is kept. Its user and password are sent as Basic
    authentication, unless the profile defines an authentication. `headers` are added to those of
    the profile. Raises `ValueError` for a placeholder without a value.
    """

    def __init__(
        self,
        part: RequestPart,
        url: GatewayUrl,
        texts: Texts,
        headers: Mapping[str, str],
    ) -> None:
        escaped = {name: _escape_url(value) for name, value in texts.account.items()}

        def template(text: str) -> Template:
            return Template(text, texts)

        def path_template(text: str) -> Template:
            return Template(text, Texts(escaped))

        self._has_body = part.body != "none"
        self._body = _merge(_compile_body(part, template)) if self._has_body else ()
        length = b"Content-Length: " if self._has_body else b""
        self._head = _merge(
            [
                f"{part.method} ".encode(),
                *_compile_target(part, url, template, path_template),
                b" HTTP/1.1\r\n",
                *_compile_headers(part, url, headers, template),
                length,
            ]
        )

    def render(self, message: OutgoingMessage) -> bytes:
        """Return head and body of the request for a message, as they are written to the network."""
        head = _render(self._head, message)
        if not self._has_body:
            return head + b"\r\n"
        body = _render(self._body, message)
        return b"%s%d\r\n\r\n%s" % (head, len(body), body)


def _render(pieces: Sequence[Piece], message: OutgoingMessage) -> bytes:
    return b"".join([p if isinstance(p, bytes) else p(message) for p in pieces])


def _merge(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Return the pieces with neighbouring constants joined."""
    merged: list[Piece] = []
    for piece in pieces:
        if merged and isinstance(piece, bytes) and isinstance(merged[-1], bytes):
            merged[-1] += piece
        else:
            merged.append(piece)
    return tuple(merged)


def _compile_target(
    part: RequestPart, url: GatewayUrl, template: TemplateOf, path_template: TemplateOf
) -> list[Piece]:
    """Compile path and query. What follows `{url}` in the profile is added to the path of `url`."""
    path = url.before[url.before.index("/", url.before.index("//") + 2) :]
    addition = part.url.removeprefix("{url}")
    if addition.startswith("/") and "?" not in path:
        path = path.rstrip("/")
    pieces: list[Piece] = [
        path.encode(),
        path_template(addition).piece(str),
        url.after.encode(),
    ]
    start = b"&" if "?" in path + url.after else b"?"
    return pieces + _compile_pairs(part.query, start, _escape_url, template)


def _compile_headers(
    part: RequestPart, url: GatewayUrl, headers: Mapping[str, str], template: TemplateOf
) -> list[Piece]:
    texts = dict(headers)
    for name, text in part.headers.items():
        value = template(text)
        if value.constant != "":
            texts[name] = text
    if part.body == "json":
        texts["Content-Type"] = "application/json"
    elif part.body == "form":
        texts["Content-Type"] = "application/x-www-form-urlencoded"
    if part.basic_auth is not None:
        user = template(part.basic_auth.username).constant or ""
        password = template(part.basic_auth.password).constant or ""
        texts["Authorization"] = _basic(user, password)
    elif url.user is not None and "Authorization" not in texts:
        texts["Authorization"] = _basic(url.user, url.password)
    pieces: list[Piece] = []
    for name, text in texts.items():
        value = template(text)
        if not (value.constant or "").isascii() or not (value.constant or "").isprintable():
            raise ValueError(f"the header {name} must be printable ASCII")  # no line ends
        pieces += [f"{name}: ".encode(), value.piece(str), b"\r\n"]
    return pieces


def _basic(user: str, password: str) -> str:
    """Return the value of a header Authorization (RFC 7617)."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def _compile_body(part: RequestPart, template: TemplateOf) -> list[Piece]:
    if part.body == "form":
        return _compile_pairs(part.fields, b"", _escape_form, template)
    pieces, _ = _compile_json(part.fields, template)
    return pieces


def _compile_pairs(
    texts: Mapping[str, str], start: bytes, escape: Callable[[str], str], template: TemplateOf
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
    return [lambda message: _join_optional(start, optional, message)] if optional else []


def _unless_empty(prefix: bytes, piece: Piece) -> Piece:
    """Return a piece for `prefix` and `piece`, which is empty if `piece` is."""
    if isinstance(piece, bytes):
        return prefix + piece if piece else b""

    def render(message: OutgoingMessage) -> bytes:
        value = piece(message)
        return prefix + value if value else b""

    return render


def _join_optional(start: bytes, pieces: Sequence[Piece], message: OutgoingMessage) -> bytes:
    """Return the pieces, each of which starts with a separator, after `start`; empty if all are."""
    joined = _render(pieces, message)
    return start + joined[1:] if joined else b""


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
            optional.append(_unless_empty(prefix, partial(_render, _merge(pieces))))
        else:
            required += [prefix, *pieces]
    if required:
        required[0] = opening + bytes(required[0])[1:]  # type: ignore[arg-type]  # the first prefix
        return [*required, *optional, closing], False

    def render(message: OutgoingMessage) -> bytes:
        content = _join_optional(opening, optional, message)
        return content + closing if content else b""

    return [render], True
