"""What a text with placeholders becomes: examples, parts, and the clients who do not get it."""

from collections.abc import Collection, Sequence

import msgspec

from mailer.client.model import Client
from mailer.gateway.sms_parts import TextSize, count_parts
from mailer.mailing.model import Mailing
from mailer.mailing.text_reach import TextReach
from mailer.mailing.text_template import (
    MAX_CHARACTERS,
    TemplateError,
    TextTemplate,
    parse,
    render,
)
from mailer.text import compose


class Example(msgspec.Struct, frozen=True):
    """The text for one client."""

    client: Client
    text: str | None
    """None if the client lacks a field."""
    size: TextSize | None
    missing_field: str | None


class TemplatePreview(msgspec.Struct, frozen=True):
    """The preview of a text with placeholders."""

    reach: TextReach | None
    """None while the audience is not known."""
    unknown_fields: tuple[str, ...]
    """Fields of the text that no client has."""
    examples: tuple[Example, ...]


def typed_template(text: str, mailing: Mailing | None, mailing_text: str) -> TextTemplate | None:
    """Return the template of the text in a form; None if it has no placeholders, or is wrong.

    `mailing` is the one that the form changes, and `mailing_text` is its text as the form has it:
    a literal text stays literal as long as it is not changed.
    """
    if mailing is not None and text == mailing_text and not mailing.placeholders:
        return None
    composed = compose(text)
    if len(composed) > MAX_CHARACTERS:
        return None
    try:
        template = parse(composed)
    except TemplateError:
        return None
    return template if template.placeholders else None


def create_template_preview(
    template: TextTemplate,
    reach: TextReach | None,
    sample: Sequence[Client],
    known_fields: Collection[str],
) -> TemplatePreview:
    """Return the preview of a text with `sample` as examples."""
    return TemplatePreview(
        reach=reach,
        unknown_fields=tuple(name for name in template.field_names if name not in known_fields),
        examples=tuple(_example(template, client) for client in sample),
    )


def _example(template: TextTemplate, client: Client) -> Example:
    text = render(template, client.fields)
    if isinstance(text, str):
        return Example(client, text, count_parts(text), missing_field=None)
    return Example(client, text=None, size=None, missing_field=text.field)
