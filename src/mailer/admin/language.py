"""Languages of the pages: texts stand in the code in English, and translated in catalogues.

The catalogues are gettext's (`locale/`), kept by `make texts`; they are read as they are, so that
there is nothing to compile.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from io import BytesIO
from pathlib import Path

from babel import Locale, negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import Translations

FOLDER = Path(__file__).parent / "locale"
LANGUAGES = {"en": "English", "ru": "Русский"}
"""Those that pages come in, by their codes, as they call themselves."""
_NUMBER = re.compile(r"\d+")

_spoken: ContextVar[str] = ContextVar("spoken", default="en")


def marked(text: str) -> str:
    """Return a text as it is: where it stands it is found for the catalogues, and said later."""
    return text


def choose(wanted: str | None, accepted: list[str]) -> str:
    """Return the language to use: the one `wanted` if there is one, else by what is accepted."""
    if wanted in LANGUAGES:
        return str(wanted)
    return negotiate_locale(accepted, LANGUAGES, sep="-") or "en"


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Say everything in a language."""
    token = _spoken.set(language)
    try:
        yield
    finally:
        _spoken.reset(token)


@cache
def catalogue(language: str) -> Translations:
    """Return the texts of a language."""
    compiled = BytesIO()
    with (FOLDER / language / "LC_MESSAGES" / "mailer.po").open("rb") as file:
        write_mo(compiled, read_po(file, locale=language))
    compiled.seek(0)
    return Translations(compiled)


@cache
def locale(language: str) -> Locale:
    """Return how a language writes numbers and dates."""
    return Locale.parse(language)


def spoken() -> str:
    """Return the language that is spoken now."""
    return _spoken.get()


def gettext(text: str) -> str:
    """Return a text in the language that is spoken."""
    return catalogue(spoken()).gettext(text)


def ngettext(one: str, many: str, count: int) -> str:
    """Return the form of a text that goes with `count`, in the language that is spoken."""
    return catalogue(spoken()).ngettext(one, many, count)


def say(message: str) -> str:
    """Return what the API says as a page says it.

    Messages with numbers in them stand in the catalogues with `{}` in their places.
    """
    if (whole := gettext(message)) != message:
        return whole
    numbers = _NUMBER.findall(message)
    pattern = _NUMBER.sub("{}", message)
    if not numbers or "{" in message or (said := gettext(pattern)) == pattern:
        return message
    return said.format(*numbers)
