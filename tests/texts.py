"""Every text that pages say, and the catalogues that translate them: `make texts` keeps them.

Run as a script it brings the catalogues up to date: what is new waits for its translation there,
what is said no more goes.
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

import mailer.app
import mailer.client.commands  # noqa: F401  # these import every model and every error
from mailer import admin
from mailer.access.oidc import model as oidc_model
from mailer.admin.language import FOLDER, LANGUAGES
from mailer.client import csvfile
from mailer.client.decoding import Encoding
from mailer.client.phone import ROUNDED
from mailer.client.rows import COLUMNS
from mailer.db import fitness
from mailer.errors import InvalidError, MailerError, StartError
from mailer.mailing.model import half_window
from mailer.validation import Input, rules_of
from mailer.web.starting import STARTING

SOURCE = Path(admin.__file__).parents[1]
METHODS = [("admin/**.py", "python"), ("admin/templates/**.html", "jinja2")]
OWN = {"_": None, "gettext": None, "marked": None, "ngettext": (1, 2)}
"""What marks a text of the pages."""
OPTIONS = {"trimmed": "true", "silent": "false", "newstyle_gettext": "true"}


def http_errors(family: type[HTTPException] = HTTPException) -> Iterator[type[HTTPException]]:
    """Yield every error that a page may show as it stands, those of the framework too."""
    yield family
    for kind in family.__subclasses__():
        yield from http_errors(kind)


API = {"FieldError": (2,), "_answer": (2,)} | {kind.__name__: (1,) for kind in http_errors()}
"""What the API says, and its pages too: of these the argument that people read."""


def texts() -> Catalog:
    """Return every text that a page may say."""
    found = Catalog(project="mailer", fuzzy=False)
    for file, _, text, comments, context in extract_from_dir(
        SOURCE, METHODS, {"**.html": OPTIONS}, OWN
    ):
        found.add(text, None, [(f"src/mailer/{file}", 0)], (), comments, context=context)
    for file, _, text, _, _ in extract_from_dir(SOURCE, [("**.py", "python")], {}, API):
        if isinstance(text, str):
            found.add(text, None, [(f"src/mailer/{file}", 0)])
    own = {kind.detail for kind in http_errors() if kind.__module__.startswith("mailer.")}
    for text in (*_rules(Input), *_errors(MailerError), *_composed(), *own):
        found.add(text)
    return found


def _rules(model: type[Input]) -> Iterator[str]:
    for kind in model.__subclasses__():
        if kind.__module__.startswith("mailer."):  # and no test's
            yield from rules_of(kind)
            yield from _rules(kind)


def _errors(family: type[MailerError]) -> Iterator[str]:
    for kind in family.__subclasses__():
        if kind not in {StartError, InvalidError} and kind.__module__.startswith("mailer."):
            yield kind().args[0]
            yield from _errors(kind)


def _composed() -> Iterable[str]:
    """Return what is put together where it is said; a number in it stands as `{}`."""
    for name in ("send_interval_time_start", "send_interval_time_end"):
        yield from (error.message for error in half_window({name: "09:00"}))
    yield f"is not one of the columns {', '.join(COLUMNS)}"
    yield "has {} fields, and the header {}"
    yield from oidc_model.TEXTS.values()
    yield ROUNDED
    yield from (f"is not {encoding}" for encoding in get_args(Encoding))
    yield from {*fitness.SENTENCES.values(), fitness.UNREACHABLE, STARTING}
    for said in (csvfile.TOO_LONG, csvfile.MALFORMED):
        yield said
        yield f"the header {said}"


def catalogue_file(language: str) -> Path:
    """Return where the catalogue of a language is."""
    return FOLDER / language / "LC_MESSAGES" / "mailer.po"


@cache
def brought_up_to_date(language: str) -> Catalog:
    """Return a language's catalogue with all texts in it, and no others; it is made once.

    English stands in the code: its catalogue has only what a page says otherwise than the API.
    """
    with catalogue_file(language).open("rb") as file:
        catalogue = read_po(file, locale=language, ignore_obsolete=True)
    catalogue.update(texts(), no_fuzzy_matching=True)
    catalogue.obsolete.clear()
    if language == "en":
        for message in [each for each in catalogue if each.id and not is_translated(each)]:
            catalogue.delete(message.id, message.context)
    return catalogue


def is_translated(message: Message) -> bool:
    """Whether every form of a text is there."""
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
    """Return a catalogue as its file has it: in order, without dates that change for nothing."""
    file = BytesIO()
    write_po(file, catalogue, width=100, omit_header=True, sort_output=True, include_lineno=False)
    header = HEADER.format(catalogue.locale_identifier, catalogue.plural_forms)
    return header.encode() + file.getvalue()


def main() -> None:
    """Write every catalogue anew."""
    for language in LANGUAGES:
        catalogue = brought_up_to_date(language)
        catalogue_file(language).write_bytes(written(catalogue))
        missing = sum(not is_translated(each) for each in catalogue if each.id)
        sys.stdout.write(f"{language}: {len(catalogue)} texts, {missing} to translate\n")


if __name__ == "__main__":
    main()
