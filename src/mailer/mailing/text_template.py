"""Texts with placeholders: `{{ name }}` and `{{ name | friend }}` stand for fields of the client.

A text is parsed once and rendered for each client. A text that has no placeholder is sent as it is.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from mailer.client.fields import is_field_name
from mailer.text import is_blank

MISSING_FIELD = "missing_field"
"""Reason of a cancelled message: the client lacks a field of the text that has no default."""
TEXT_TOO_LONG = "text_too_long"
"""Reason of an undelivered message: with the client's fields, the text is too long."""
MAX_TEXT_LENGTH = 1_600
"""Characters of a text, also with the fields of the client."""

_BRACES = re.compile(r"\{{2,}|\}{2,}|\{\s*[^\W\d]\w*\s*(?:\|[^{}]*)?\}")
"""Two or more braces, or what looks like a placeholder with single ones, as `{name}`."""


class TemplateError(ValueError):
    """A text has something that looks like a placeholder and is none.

    The message names its place, to be read after the name of the field. It has no brace, so that
    the pages can translate it.
    """


class Placeholder(msgspec.Struct, frozen=True, omit_defaults=True):
    """A place in a text that stands for a field of the client."""

    field: str
    default: str | None = None
    """Stands there for clients who lack the field; None: they do not get the message."""

    def __str__(self) -> str:
        """Return the placeholder as it is written."""
        default = "" if self.default is None else f" | {self.default}"
        return f"{{{{ {self.field}{default} }}}}"


class MissingField(msgspec.Struct, frozen=True):
    """The client lacks a field of the text, which has no default."""

    field: str


class TextTemplate(msgspec.Struct, frozen=True):
    """A parsed text: its literal parts and placeholders, in their order."""

    pieces: tuple[str | Placeholder, ...]

    @property
    def placeholders(self) -> list[Placeholder]:
        """The placeholders, in the order of the text."""
        return [piece for piece in self.pieces if isinstance(piece, Placeholder)]

    @property
    def field_names(self) -> list[str]:
        """The fields that the text uses, each once, in the order of the text."""
        return list(dict.fromkeys(each.field for each in self.placeholders))

    @property
    def stored(self) -> list[Any] | None:
        """The form in which the database has the template; None for a text without placeholders.

        A text that is stored without a template is literal, whatever braces it has.
        """
        return msgspec.to_builtins(self.pieces) if self.placeholders else None


def parse(text: str) -> TextTemplate:
    """Parse a text; raises `TemplateError` for what looks like a placeholder and is none."""
    return TextTemplate(tuple(_pieces(text)))


def parse_stored(stored: str | bytes | None) -> TextTemplate | None:
    """Return a template from the JSON of `TextTemplate.stored`; None for that of a literal text."""
    if stored is None:
        return None
    return TextTemplate(msgspec.json.decode(stored, type=tuple[str | Placeholder, ...]))


def stored_field_names(stored: Sequence[Any] | None) -> list[str]:
    """Return `field_names` of the template that is stored in this form."""
    pieces = msgspec.convert(stored or (), tuple[str | Placeholder, ...])
    return TextTemplate(pieces).field_names


def render(template: TextTemplate, fields: Mapping[str, str]) -> str | MissingField:
    """Return the text for a client with these fields, or the first field that is missing.

    A blank value is a missing one.
    """
    rendered = []
    for piece in template.pieces:
        if isinstance(piece, str):
            rendered.append(piece)
            continue
        value = fields.get(piece.field, "")
        if not is_blank(value):
            rendered.append(value)
        elif piece.default is not None:
            rendered.append(piece.default)
        else:
            return MissingField(piece.field)
    return "".join(rendered)


def _pieces(text: str) -> Iterator[str | Placeholder]:
    """Yield the literal parts and the placeholders of a text."""
    literal_start, opening = 0, None  # of a placeholder: its opening braces
    for braces in _BRACES.finditer(text):
        place = f"at character {braces.start() + 1}"
        match braces.group(), opening:
            case "{{", None:
                opening = braces
            case "}}", re.Match():
                if literal_start < opening.start():
                    yield text[literal_start : opening.start()]
                content = text[opening.end() : braces.start()]
                yield _read_placeholder(content, f"at character {opening.start() + 1}")
                literal_start, opening = braces.end(), None
            case _, re.Match():
                raise TemplateError(f"has braces inside a placeholder {place}")
            case "}}", None:
                raise TemplateError(f"has closing braces without opening ones {place}")
            case token, _ if token.startswith("{") and token.endswith("}"):
                raise TemplateError(f"has single braces {place}: a placeholder has two")
            case _:
                raise TemplateError(f"has more than two braces in a row {place}")
    if opening is not None:
        place = f"at character {opening.start() + 1}"
        raise TemplateError(f"has opening braces without closing ones {place}")
    if literal_start < len(text):
        yield text[literal_start:]


def _read_placeholder(content: str, place: str) -> Placeholder:
    """Return the placeholder with this content between its braces; `place` is for an error."""
    name, separator, default = (part.strip() for part in content.partition("|"))
    if "{" in content or "}" in content:
        raise TemplateError(f"has braces inside a placeholder {place}")
    if not name:
        raise TemplateError(f"has a placeholder without a name {place}")
    if not is_field_name(name):
        raise TemplateError(
            f"has a placeholder with a wrong name {place}: use up to 32 of a-z, digits and _, and a"
            " letter first"
        )
    if "|" in default:
        raise TemplateError(f"has a placeholder with two defaults {place}")
    if separator and is_blank(default):
        raise TemplateError(f"has a placeholder with an empty default {place}")
    return Placeholder(name, default if separator else None)
