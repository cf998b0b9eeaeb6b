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
MAX_CHARACTERS = 1_600
"""Characters of a text, also with the fields of the client."""

_BRACES = re.compile(r"\{{2,}|\}{2,}|\{\s*[^\W\d]\w*\s*(?:\|[^{}]*)?\}")
"""Two or more braces, or what looks like a placeholder with single ones, as `{name}`."""

NOT_CLOSED = "has opening braces without closing ones at character {}"
NOT_OPENED = "has closing braces without opening ones at character {}"
NESTED = "has braces inside a placeholder at character {}"
TOO_MANY_BRACES = "has more than two braces in a row at character {}"
SINGLE_BRACES = "has single braces at character {}: a placeholder has two"
NO_NAME = "has a placeholder without a name at character {}"
WRONG_NAME = (
    "has a placeholder with a wrong name at character {}: use up to 32 of a-z, digits and _, and a"
    " letter first"
)
TWO_DEFAULTS = "has a placeholder with two defaults at character {}"
EMPTY_DEFAULT = "has a placeholder with an empty default at character {}"
MISTAKES = (
    *(NOT_CLOSED, NOT_OPENED, NESTED, TOO_MANY_BRACES, SINGLE_BRACES),
    *(NO_NAME, WRONG_NAME, TWO_DEFAULTS, EMPTY_DEFAULT),
)
"""The messages of `TemplateError`; `{}` is the place."""


class TemplateError(ValueError):
    """A text has something that looks like a placeholder and is none.

    The message names its place, to be read after the name of the field.
    """

    def __init__(self, mistake: str, index: int) -> None:
        super().__init__(mistake.format(f"{index + 1}"))


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
        found, place = braces.group(), braces.start()
        if found == "}}" and opening is not None:
            if literal_start < opening.start():
                yield text[literal_start : opening.start()]
            yield _read_placeholder(text[opening.end() : place], opening.start())
            literal_start, opening = braces.end(), None
        elif opening is not None:
            raise TemplateError(NESTED, place)
        elif found == "{{":
            opening = braces
        elif found == "}}":
            raise TemplateError(NOT_OPENED, place)
        elif found.startswith("{") and found.endswith("}"):
            raise TemplateError(SINGLE_BRACES, place)
        else:
            raise TemplateError(TOO_MANY_BRACES, place)
    if opening is not None:
        raise TemplateError(NOT_CLOSED, opening.start())
    if literal_start < len(text):
        yield text[literal_start:]


def _read_placeholder(content: str, place: int) -> Placeholder:
    """Return the placeholder with this content between its braces, the first of them at `place`."""
    name, separator, default = (part.strip() for part in content.partition("|"))
    if "{" in content or "}" in content:
        raise TemplateError(NESTED, place)
    if not name:
        raise TemplateError(NO_NAME, place)
    if not is_field_name(name):
        raise TemplateError(WRONG_NAME, place)
    if "|" in default:
        raise TemplateError(TWO_DEFAULTS, place)
    if separator and is_blank(default):
        raise TemplateError(EMPTY_DEFAULT, place)
    return Placeholder(name, default if separator else None)
