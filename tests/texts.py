"""Every text that pages show, and the catalogues (`mailer.po`) with their translations.

Run as a script (`make texts`), this updates the catalogues: new texts are added without a
translation, and texts that no page shows any more are removed.
"""

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import get_args

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po
from litestar.exceptions import HTTPException

import mailer.client.commands
import mailer.worker  # noqa: F401  # these import every model and every error
from mailer import admin
from mailer.admin.language import LANGUAGES, LOCALE_FOLDER
from mailer.client import csv_reader, layout, workbook
from mailer.client.decoding import Encoding
from mailer.client.fields import TOO_MANY_FIELDS, WRONG_FIELD_NAME, WRONG_FIELD_VALUE
from mailer.client.phone import ROUNDED_MESSAGE
from mailer.db import requirements
from mailer.errors import InvalidError, MailerError, StartError
from mailer.mailing.model import missing_window_bound
from mailer.mailing.text_template import MISTAKES
from mailer.oidc import model as oidc_model
from mailer.opt_out.importing import WRONG_TIME
from mailer.statuses import STATUSES
from mailer.validation import Input, rule_texts
from mailer.web.startup_gate import STARTING_DETAIL

SOURCE = Path(admin.__file__).parents[1]
PAGE_FILES = [("admin/**.py", "python"), ("admin/templates/**.html", "jinja2")]
"""The files that contain texts of pages, and how Babel reads them."""
PAGE_TEXT_FUNCTIONS = {"_": None, "gettext": None, "gettext_noop": None, "ngettext": (1, 2)}
"""Functions that mark texts of pages, and the positions of the texts, from 1; None: the first."""
TEMPLATE_OPTIONS = {"trimmed": "true", "silent": "false", "newstyle_gettext": "true"}
"""How Babel reads templates: blanks around texts do not count, and invalid templates are errors."""


def http_errors(family: type[HTTPException] = HTTPException) -> Iterator[type[HTTPException]]:
    """Yield every error class whose text a page may show, including those of the framework."""
    yield family
    for subclass in family.__subclasses__():
        yield from http_errors(subclass)


SHARED_TEXT_FUNCTIONS = {"FieldError": (2,), "_response": (2,)} | {
    kind.__name__: (1,) for kind in http_errors()
}
"""Functions with a text that API and pages show, and the position of this argument, from 1."""


def texts() -> Catalog:
    """Return a catalogue of every text that a page may show."""
    catalogue = Catalog(project="mailer", fuzzy=False)
    for file, _, text, comments, context in extract_from_dir(
        SOURCE, PAGE_FILES, {"**.html": TEMPLATE_OPTIONS}, PAGE_TEXT_FUNCTIONS
    ):
        catalogue.add(text, None, [(f"src/mailer/{file}", 0)], (), comments, context=context)
    for file, _, text, _, _ in extract_from_dir(
        SOURCE, [("**.py", "python")], {}, SHARED_TEXT_FUNCTIONS
    ):
        if isinstance(text, str):
            catalogue.add(text, None, [(f"src/mailer/{file}", 0)])
    own_details = {kind.detail for kind in http_errors() if kind.__module__.startswith("mailer.")}
    for text in (*_rules(Input), *_errors(MailerError), *_unmarked(), *own_details):
        catalogue.add(text)
    return catalogue


def _rules(model: type[Input]) -> Iterator[str]:
    """Yield the texts of the validation rules of all input models of mailer."""
    for subclass in model.__subclasses__():
        if subclass.__module__.startswith("mailer."):  # not of a test
            yield from rule_texts(subclass)
            yield from _rules(subclass)


def _errors(family: type[MailerError]) -> Iterator[str]:
    """Yield the default texts of all error classes of mailer that users see."""
    for subclass in family.__subclasses__():
        is_shown = subclass not in {StartError, InvalidError}
        if is_shown and subclass.__module__.startswith("mailer."):
            yield subclass().args[0]
            yield from _errors(subclass)


def _unmarked() -> Iterable[str]:
    """Return the texts that no call marks; those with numbers have `{}` in place of them."""
    for name in ("send_interval_time_start", "send_interval_time_end"):
        yield from (error.message for error in missing_window_bound({name: "09:00"}))
    yield from (workbook.NOT_A_WORKBOOK, workbook.OLD_WORKBOOK, workbook.LARGE_WORKBOOK)
    yield from ("column {}", "the header has more than {} columns", "and {} more rejected lines")
    yield "has {} fields, but the header has {}"
    yield "has more than {} parts, the gateway's limit"
    yield from oidc_model.REASON_TEXTS.values()
    yield from (rules.label for rules in STATUSES.values())
    yield from (ROUNDED_MESSAGE, WRONG_TIME)
    yield from (WRONG_FIELD_NAME, WRONG_FIELD_VALUE, TOO_MANY_FIELDS)
    yield from (mistake.replace("32", "{}") for mistake in MISTAKES)
    yield from (f"is not {encoding}" for encoding in get_args(Encoding))
    yield from {*requirements.ERROR_SENTENCES.values(), requirements.UNREACHABLE, STARTING_DETAIL}
    for text in (csv_reader.TOO_LONG, layout.MALFORMED_CSV):
        yield text
        yield f"the header {text}"


def catalogue_file(language: str) -> Path:
    """Return the path of a language's catalogue."""
    return LOCALE_FOLDER / language / "LC_MESSAGES" / "mailer.po"


@cache
def updated_catalogue(language: str) -> Catalog:
    """Return a language's catalogue with exactly the present texts.

    The code contains the English texts, so the English catalogue contains only texts that a page
    shows with other words than the API.
    """
    with catalogue_file(language).open("rb") as file:
        catalogue = read_po(file, locale=language, ignore_obsolete=True)
    catalogue.update(texts(), no_fuzzy_matching=True)
    catalogue.obsolete.clear()
    if language == "en":
        for message in [entry for entry in catalogue if entry.id and not is_translated(entry)]:
            catalogue.delete(message.id, message.context)
    return catalogue


def is_translated(message: Message) -> bool:
    """Return whether every plural form of a text is translated."""
    forms = message.string if isinstance(message.string, tuple | list) else [message.string]
    return all(forms)


HEADER = """\
msgid ""
msgstr ""
"Language: {}\\n"
"Content-Type: text/plain; charset=utf-8\\n"
"Plural-Forms: {}\\n"

"""


def written(catalogue: Catalog) -> bytes:
    """Return the file content of a catalogue: sorted, and without dates that always change."""
    file = BytesIO()
    write_po(file, catalogue, width=100, omit_header=True, sort_output=True, include_lineno=False)
    header = HEADER.format(catalogue.locale_identifier, catalogue.plural_forms)
    return header.encode() + file.getvalue()


def main() -> None:
    """Update every catalogue."""
    for language in LANGUAGES:
        catalogue = updated_catalogue(language)
        catalogue_file(language).write_bytes(written(catalogue))
        missing = sum(not is_translated(entry) for entry in catalogue if entry.id)
        sys.stdout.write(f"{language}: {len(catalogue)} texts, {missing} to translate\n")


if __name__ == "__main__":
    main()
