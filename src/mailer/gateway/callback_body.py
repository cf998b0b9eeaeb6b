"""Read the query or the body of a call: a form or JSON, in the encodings that providers use."""

from collections.abc import Collection, Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from mailer.gateway.callback import MAX_DOCUMENT_BYTES, Callback, UnreadableCallbackError
from mailer.gateway.callback_values import split_paths
from mailer.gateway.json_path import JsonPath, shape_of
from mailer.gateway.response import find_charset
from mailer.gateway.signatures.fields import is_json
from mailer.json_input import JsonError, read_json

MAX_CALL_FIELDS = 5_000
"""Most fields of a form or query."""

MESSAGE_FIELD, SECRET_FIELD = URL_FIELDS = ("message", "secret")
"""Fields that mailer puts into the query of the URL: its id of the message, and a secret."""

Document = dict[str, Any]


class FormFields:
    """The fields of a form or query that are read; all others are skipped, for speed.

    `paths` are those of a profile. A field at a path such as `data[*]` is a list: `data[0]`,
    `data[]`, or `data` several times.
    """

    def __init__(self, paths: Iterable[JsonPath], without: Collection[str] = ()) -> None:
        first_steps = {tuple(path.steps[:2]) for path in paths}
        names = {steps[0]: steps[1:] == (None,) for steps in first_steps if steps}
        self._lists = {name for name, is_list in names.items() if is_list}
        self._names = {str(name).encode(): str(name) for name in names if name not in without}

    def read(self, data: bytes, encoding: str = "utf-8", octets: str | None = None) -> Document:
        """Return the fields of `application/x-www-form-urlencoded` data.

        `encoding` is that of texts which are not UTF-8. The field `octets` stays undecoded. Raises
        `UnreadableCallbackError`, also for a field that is there twice: a signature could be over
        one of them, and the other be read.
        """
        if data.count(b"&") > MAX_CALL_FIELDS:
            raise UnreadableCallbackError("there are too many fields")
        document: Document = {}
        names = self._names
        for pair in data.split(b"&"):
            field, _, value = pair.partition(b"=")
            name = names.get(field)
            if name is None:
                if not (b"%" in field or b"[" in field):
                    continue
                name = self._find_name(unquote_to_bytes(field))
                if name is None:
                    continue
            found = unquote(value) if name == octets else decode(unquote(value), encoding)
            if name in self._lists:
                document.setdefault(name, []).append(found)
            elif name in document:
                raise UnreadableCallbackError("a field is there twice")
            else:
                document[name] = found
        return document

    def _find_name(self, field: bytes) -> str | None:
        """Return the name of a field that is written in an unusual way, or that is in a list."""
        start, bracket, rest = field.partition(b"[")
        if bracket and rest.endswith(b"]") and (rest == b"]" or rest[:-1].isdigit()):
            name = self._names.get(start)
            return name if name in self._lists else None
        return self._names.get(field)


class BodyReader:
    """Reads calls.

    `paths` are all paths of a profile, from the start of a document. The field `octets` of a form
    stays undecoded, unless the call names its charset.
    """

    def __init__(self, paths: Iterable[str], octets: str | None, encoding: str) -> None:
        compiled = [JsonPath(path) for text in paths for path in split_paths(text)]
        self._form = FormFields(compiled)
        self._query = FormFields(compiled, without=URL_FIELDS)
        self._octets = octets
        self._shape = shape_of(compiled)
        self._encoding = encoding

    def read(self, callback: Callback) -> object:
        """Return the document of a call. Raises `UnreadableCallbackError`.

        The fields are either in the query or in the body: a signature could be over those of one,
        and those of the other be read.
        """
        body = callback.body
        in_query = self._query.read(query_of(callback), self._encoding, self._octets)
        if callback.method == "GET" or not body:
            return in_query
        if in_query:
            raise UnreadableCallbackError("there are fields in the query and in the body")
        if len(body) > MAX_DOCUMENT_BYTES:
            raise UnreadableCallbackError("the body is too long")
        content_type = callback.headers.get("content-type", "")
        charset = find_charset(content_type) if "charset" in content_type.lower() else None
        if is_json(body) or "json" in content_type.lower():
            return self._read_json(body, charset)
        if charset is not None:
            return self._form.read(body, charset)
        return self._form.read(body, self._encoding, self._octets)

    def _read_json(self, body: bytes, charset: str | None) -> object:
        """Return a JSON document; of a usual one only what is at the paths, which is faster."""
        if charset is not None and charset.lower() not in {"utf-8", "utf8"}:
            body = body.decode(charset, errors="replace").encode(errors="replace")
        try:
            return read_json(body, self._shape, limit=MAX_DOCUMENT_BYTES)
        except JsonError:
            return read_any_json(body)


def read_any_json(body: bytes) -> object:
    """Return a JSON document of any shape. Raises `UnreadableCallbackError`."""
    try:
        return read_json(body, object, limit=MAX_DOCUMENT_BYTES, is_lenient=True)
    except (JsonError, msgspec.MsgspecError, RecursionError):
        raise UnreadableCallbackError("the body is not JSON, or has too many values") from None


def query_of(callback: Callback) -> bytes:
    """Return the query of a call's URL."""
    return callback.url.partition("?")[2].partition("#")[0].encode(errors="replace")


def unquote(value: bytes) -> bytes:
    """Return the bytes of a percent-encoded value."""
    if b"+" in value:
        value = value.replace(b"+", b" ")
    return unquote_to_bytes(value) if b"%" in value else value


def decode(octets: bytes, encoding: str) -> str:
    """Return a text in UTF-8, or else in `encoding`; bytes that are no text are replaced.

    Cyrillic text in windows-1251 is practically never UTF-8.
    """
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets.decode(encoding, errors="replace")
