"""Downloads of the pages as CSV for spreadsheets, which the user's language expects differently."""

from collections.abc import Mapping

from msgspec import UNSET, UnsetType

from mailer.db.csv_export import CsvLayout
from mailer.message.spreadsheet import DELIMITER_CHARACTERS, Separator
from mailer.validation import Input

DEFAULT_SEPARATORS: Mapping[str, Separator] = {"ru": "semicolon"}
"""What separates the cells of a download, by language; a comma in the others."""


class SeparatorQuery(Input, frozen=True, kw_only=True):
    """What separates the cells of a download; by default that depends on the language."""

    separator: Separator | UnsetType = UNSET


def default_separator(language: str) -> Separator:
    """Return what separates the cells of a download if the user chooses nothing."""
    return DEFAULT_SEPARATORS.get(language, "comma")


def chosen_separator(separator: Separator | UnsetType, language: str) -> Separator:
    """Return what separates the cells of a download."""
    return default_separator(language) if separator is UNSET else separator


def spreadsheet_layout(separator: Separator | UnsetType, language: str) -> CsvLayout:
    """Return how a download is written: with a byte order mark, by which Excel knows UTF-8."""
    chosen = chosen_separator(separator, language)
    return CsvLayout(DELIMITER_CHARACTERS[chosen], has_mark=True)
