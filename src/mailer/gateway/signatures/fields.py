"""The fields of a call, as the bytes that a provider has signed.

Bytes, because two invalid texts may decode to the same text, and because the charset is not known.
"""

from typing import Any
from urllib.parse import parse_qsl, urlencode

from msgspec.structs import replace

from mailer.gateway.callback import MAX_DOCUMENT_BYTES, Callback
from mailer.json_input import read_json

Field = tuple[bytes, bytes]
"""Name and value."""


def encode(text: str) -> bytes:
    """Return a text in UTF-8, also one that is not valid Unicode."""
    return text.encode("utf-8", "surrogatepass")


def query_fields(url: str) -> list[Field]:
    """Return the fields of a URL's query. Raises `ValueError` if it is not made of fields."""
    return _split(encode(url.partition("?")[2]))


def form_fields(body: bytes) -> list[Field]:
    """Return the fields of a form. Raises `ValueError` for another body."""
    return _split(body)


def body_fields(callback: Callback) -> list[Field]:
    """Return the fields of the body: a form or a JSON object of texts and numbers.

    The first character of the body decides, not its content type: what reads the call may do the
    same, and must not see fields that were not verified. Raises `ValueError` for any other body.
    """
    return _json_fields(callback.body) if is_json(callback.body) else form_fields(callback.body)


def all_fields(callback: Callback) -> list[Field]:
    """Return the fields of the query and of the body; raises `ValueError` like both."""
    return query_fields(callback.url) + body_fields(callback)


def single_value(fields: list[Field], name: bytes) -> bytes | None:
    """Return the value of a field; None if there is no such field.

    Raises `ValueError` if there are several: another reader could choose another one.
    """
    values = [value for each, value in fields if each == name]
    if len(values) > 1:
        raise ValueError("a field is repeated")
    return values[0] if values else None


def is_json(body: bytes) -> bool:
    """Return whether a body looks like JSON, whatever its content type says."""
    return body.lstrip().startswith((b"{", b"["))


def add_fields(callback: Callback, fields: dict[str, str]) -> Callback:
    """Return the call with further fields: in the query of a GET, else in the form."""
    added = urlencode(fields)
    if callback.method == "GET":
        separator = "&" if "?" in callback.url else "?"
        return replace(callback, url=f"{callback.url}{separator}{added}")
    separator = "&" if callback.body else ""
    return replace(callback, body=callback.body + f"{separator}{added}".encode())


def _split(text: bytes) -> list[Field]:
    if not text:
        return []
    # strict: without its "=", a field would have another name, but some schemes would not see it.
    # Latin-1 maps each byte to one character and back.
    pairs = parse_qsl(
        text.decode("ascii"), keep_blank_values=True, strict_parsing=True, encoding="latin-1"
    )
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]


def _json_fields(body: bytes) -> list[Field]:
    document = read_json(body, dict[str, Any], limit=MAX_DOCUMENT_BYTES)
    fields = []
    for name, value in document.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError("a value is no text and no number")  # noqa: TRY004  # of the call, not a bug
        fields.append((encode(name), encode(str(value))))
    return fields
