"""Build the HTTP request for a message from a profile; what can be computed before is constant."""

import base64
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

from mailer.gateway.placeholders import MAX_CACHED_TEXTS
from mailer.gateway.profile import RequestPart
from mailer.gateway.protocol import OutgoingMessage
from mailer.gateway.template import (
    AS_IS,
    IN_FORM,
    IN_JSON,
    IN_URL,
    Escape,
    Piece,
    Template,
    Texts,
    encode_json,
    join,
    value_of,
)
from mailer.urls import GatewayUrl

TemplateOf = Callable[[str], Template]
"""Returns the template of a text of the profile."""

CONTENT_TYPES = {"json": "application/json", "form": "application/x-www-form-urlencoded"}
"""By the `body` of a profile."""


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

        self._has_body = part.body != "none"
        body = value_of(_compile_body(part, texts) if self._has_body else [])
        self._body = cast("Callable[[OutgoingMessage], str]", body)  # no number
        length = "Content-Length: " if self._has_body else ""
        origin = url.before[: _path_start(url.before)] if has_whole_url else ""
        self._head = join(
            [
                f"{part.method} {origin}",
                *_compile_target(part, url, texts),
                " HTTP/1.1\r\n",
                *_compile_headers(part, url, headers, texts),
                length,
            ]
        )

    def render(self, message: OutgoingMessage) -> bytes:
        """Return head and body of the request for a message, as they are written to the network."""
        head = self._head if isinstance(self._head, str) else self._head(message)
        if not self._has_body:
            return f"{head}\r\n".encode()
        body = self._body(message)
        length = len(body if body.isascii() else body.encode())
        return f"{head}{length}\r\n\r\n{body}".encode()


def _path_start(url: str) -> int:
    """Return the position of the path in a URL."""
    return url.index("/", url.index("//") + 2)


def _compile_target(part: RequestPart, url: GatewayUrl, texts: Texts) -> list[Piece]:
    """Compile path and query. What follows `{url}` in the profile is added to the path of `url`."""
    addition = part.url.removeprefix("{url}")
    before, after = url.before, url.after
    if addition != "{id}":  # only the id alone can be a value in the query of the address
        before, _, query = f"{before}{after}".partition("?")
        after = f"?{query}" if query else ""
    path = before[_path_start(before) :]
    if addition.startswith("/"):
        path = path.rstrip("/")
    in_path = Template(addition, texts, IN_URL, _check_in_path, keeps_text=True)
    start = "&" if "?" in path + after else "?"
    return [path, *in_path.pieces(), after, *_compile_pairs(part.query, start, IN_URL, texts)]


def _compile_headers(
    part: RequestPart, url: GatewayUrl, headers: Mapping[str, str], texts: Texts
) -> list[Piece]:
    """Compile the headers. Each is there once, and left out if it is empty."""

    def template(text: str) -> Template:
        return Template(text, texts, AS_IS, _check_in_header)

    values = {name.lower(): (name, template(text)) for name, text in headers.items()}
    for name, text in part.headers.items():
        value = template(text)
        if value.constant != "":
            values[name.lower()] = (name, value)
    if part.body in CONTENT_TYPES:
        values.setdefault("content-type", ("Content-Type", template(CONTENT_TYPES[part.body])))
    if part.basic_auth is not None:
        user = Template(part.basic_auth.username, texts, AS_IS, _check_user).constant or ""
        password = Template(part.basic_auth.password, texts).constant or ""
        values["authorization"] = ("Authorization", template(_basic(user, password)))
    elif url.user is not None and "authorization" not in values:
        values["authorization"] = ("Authorization", template(_basic(url.user, url.password)))
    return [piece for name, value in values.values() for piece in _compile_header(name, value)]


def _compile_header(name: str, value: Template) -> list[Piece]:
    prefix = f"{name}: "
    if value.may_be_empty:
        return [_unless_empty(prefix, value.pieces(), "\r\n")]
    return [prefix, *value.pieces(), "\r\n"]


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


def _compile_body(part: RequestPart, texts: Texts) -> Sequence[Piece]:
    if part.body == "form":
        return _compile_pairs(part.fields, "", IN_FORM, texts)
    return _compile_json(part.fields, lambda text: Template(text, texts, IN_JSON)).pieces


class _Compiled(NamedTuple):
    """A part of a request, compiled."""

    pieces: Sequence[Piece]
    may_be_empty: bool = False
    is_of_mailing: bool = True
    """Whether the part is the same in all messages of a mailing."""
    needs_callback: bool = False
    """Whether the part is empty without a URL for receipts."""


def _compiled(template: Template, quote: str = "") -> _Compiled:
    pieces = template.pieces()
    if quote and template.may_be_empty:
        pieces = [_unless_empty(quote, pieces, quote)]
    elif quote:
        pieces = [quote, *pieces, quote]
    return _Compiled(pieces, template.may_be_empty, template.is_of_mailing, template.needs_callback)


def _compile_pairs(
    fields: Mapping[str, str], start: str, escape: Escape, texts: Texts
) -> Sequence[Piece]:
    """Compile `name=value` pairs, joined by `&`, after `start`. Empty ones are left out."""
    entries = [
        (f"&{escape.text(name)}=", _compiled(Template(text, texts, escape)))
        for name, text in fields.items()
    ]
    return _join_entries(start, entries).pieces if entries else []


def _compile_json(value: Any, template: TemplateOf) -> _Compiled:  # noqa: ANN401  # any value of TOML
    """Compile a value of a JSON document."""
    match value:
        case str():
            text = template(value)
            return _compiled(text, "" if text.is_number else '"')
        case dict():
            entries = [
                (f",{encode_json(name).decode()}:", _compile_json(entry, template))
                for name, entry in value.items()
            ]
            return _join_entries("{", entries, "}")
        case list():
            parts = [(",", _compile_json(entry, template)) for entry in value]
            return _join_entries("[", parts, "]", keeps_order=True)
        case _:
            return _Compiled([encode_json(value).decode()])


def _join_entries(
    start: str,
    entries: Sequence[tuple[str, _Compiled]],
    end: str = "",
    *,
    keeps_order: bool = False,
) -> _Compiled:
    """Join the entries of an object, a list or a form, each with its prefix.

    A prefix starts with a separator, which the first entry does not need. An entry that is empty is
    left out, and the result is empty if all entries may be empty and are. Entries that may be empty
    come last. Unless `keeps_order`, those that are the same in all messages of a mailing do too.
    """
    required: list[Piece] = []
    of_mailing: list[Piece] = []
    with_callback: list[Piece] = []
    optional: list[Piece] = []
    is_of_mailing = all(part.is_of_mailing for _, part in entries)
    for prefix, part in entries:
        if part.may_be_empty:
            group = with_callback if part.needs_callback else optional
            group = of_mailing if part.is_of_mailing else group
            group.append(_unless_empty(prefix, part.pieces))
        elif part.is_of_mailing and not is_of_mailing and not keeps_order:
            of_mailing += [prefix, *part.pieces]
        else:
            required += [prefix, *part.pieces]
    optional = [*_once_a_mailing(of_mailing), *_if_callback(with_callback), *optional]
    if required:
        required[0] = start + str(required[0])[1:]  # the first prefix
        return _Compiled([*required, *optional, end], is_of_mailing=is_of_mailing)
    join_optional = value_of(optional)

    def text(message: OutgoingMessage) -> str:
        content = str(join_optional(message))
        return start + content[1:] + end if content else ""

    needs_callback = all(part.needs_callback for _, part in entries)
    return _Compiled([text], True, is_of_mailing, needs_callback)  # noqa: FBT003  # see `_Compiled`


def _once_a_mailing(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """Join pieces that are the same in all messages of a mailing; remember them, for speed."""
    if not any(map(callable, pieces)):
        return pieces
    join_pieces = value_of(pieces)

    @lru_cache(MAX_CACHED_TEXTS)
    def remembered(text: str, sender: str) -> str | int:
        return join_pieces(OutgoingMessage(id=0, phone="", text=text, sender=sender))

    return [lambda message: remembered(message.text, message.sender)]


def _if_callback(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """Join pieces that are all empty without a URL for receipts."""
    if not any(pieces):
        return []
    join_pieces = value_of(pieces)
    return [lambda message: join_pieces(message) if message.callback else ""]


def _unless_empty(prefix: str, pieces: Sequence[Piece], end: str = "") -> Piece:
    """Return the pieces between `prefix` and `end`; the result is empty if the pieces are."""
    if not any(pieces):
        return ""
    value = value_of(pieces)

    def text(message: OutgoingMessage) -> str:
        content = value(message)
        return f"{prefix}{content}{end}" if content else ""

    return text
