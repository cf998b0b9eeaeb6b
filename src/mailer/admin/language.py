"""Languages of the pages: the code contains English texts, and gettext catalogues translations.

`make texts` keeps the catalogues (`locale/`) up to date. They are read at run time, without a
separate step that compiles them.
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

LOCALE_FOLDER = Path(__file__).parent / "locale"
LANGUAGES = {"en": "English", "ru": "Русский"}
"""Languages of the pages: code, and name in the language itself."""
_NUMBER = re.compile(r"\d+")

_language: ContextVar[str] = ContextVar("language", default="en")
"""The language that the current task renders in."""


def gettext_noop(text: str) -> str:
    """Return `text` unchanged; marks it for the catalogues, to be translated when it is shown."""
    return text


def choose_language(chosen: str | None, accepted: list[str]) -> str:
    """Return the language for a user: `chosen` if it is known, else the best known of `accepted`.

    `accepted` are codes from the most preferred on. Without a known one the language is English.
    """
    if chosen in LANGUAGES:
        return str(chosen)
    return negotiate_locale(accepted, LANGUAGES, sep="-") or "en"


@contextmanager
def use_language(language: str) -> Iterator[None]:
    """Translate into `language` inside the `with` block."""
    token = _language.set(language)
    try:
        yield
    finally:
        _language.reset(token)


@cache
def catalogue(language: str) -> Translations:
    """Return the translations of a language, compiled from its catalogue."""
    compiled = BytesIO()
    with (LOCALE_FOLDER / language / "LC_MESSAGES" / "mailer.po").open("rb") as file:
        write_mo(compiled, read_po(file, locale=language))
    compiled.seek(0)
    return Translations(compiled)


@cache
def locale(language: str) -> Locale:
    """Return the rules by which a language writes numbers and dates."""
    return Locale.parse(language)


def current_language() -> str:
    """Return the language of the current `use_language` block."""
    return _language.get()


def gettext(text: str) -> str:
    """Return `text` in the current language."""
    return catalogue(current_language()).gettext(text)


def ngettext(one: str, many: str, count: int) -> str:
    """Return the singular or plural form of a text for `count`, in the current language."""
    return catalogue(current_language()).ngettext(one, many, count)


MESSAGES_WITH_NAMES = (
    gettext_noop("must name existing lists; not found: {}"),
    gettext_noop("These mailings for this list have not ended: {}"),
)
"""Messages of the API that end with names; `{}` is their place."""


def translate_message(message: str) -> str:
    """Return a message of the API in the words of the pages, in the current language.

    The catalogues contain some messages with `{}` in place of each number: "has 3 fields, but the
    header has 2" is translated as "has {} fields, but the header has {}". Those of
    `MESSAGES_WITH_NAMES` have it in place of names. A message without a translation is returned
    unchanged.
    """
    if (translated := gettext(message)) != message:
        return translated
    start, separator, names = message.partition(": ")
    if (pattern := f"{start}{separator}{{}}") in MESSAGES_WITH_NAMES:
        return gettext(pattern).format(names)
    if "{" in message:  # not a place for a number
        return message
    pattern = _NUMBER.sub("{}", message)
    translated_pattern = gettext(pattern)
    if translated_pattern == pattern:
        return message
    return translated_pattern.format(*_NUMBER.findall(message))
