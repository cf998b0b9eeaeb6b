"""Values in what a provider sends: where they are, and what of them is kept."""

import re
from collections.abc import Callable, Mapping, Sequence
from operator import methodcaller

from mailer.gateway.json_path import JsonPath, Step
from mailer.gateway.profile import ConditionPart
from mailer.gateway.response_rule import scalar_text
from mailer.validation import MAX_ID

MAX_ID_LENGTH = 200
"""Characters of an id of a gateway; a longer one is no id."""
MAX_ERROR_CODE_LENGTH = 64
"""Characters of an error code; a longer one, such as a sentence, is cut."""
MAX_INTEGER = 10**40
"""Larger integers are no values: nothing needs them, and their texts take long."""
MAX_PHONE_DIGITS = 15
"""Digits of the longest phone (ITU-T E.164)."""
RUSSIAN_DIGITS = 11
"""Digits of a Russian phone with its prefix, 7 or 8."""
ENTRY_NAME = "@name"
"""In place of a path: the name of an entry of an object."""

Find = Callable[[Mapping[str, object]], object]
"""Returns the value at a path; None if there is none."""


def split_paths(text: str) -> list[str]:
    """Return the paths in a text, which are separated by `|`."""
    return [path.strip() for path in text.split("|")]


def compile_paths(text: str) -> Find:
    """Return the function that finds the value at the first of the paths that exists.

    Raises `ValueError` for a text that is no path.
    """
    finds = [_compile_path(path) for path in split_paths(text)]
    if len(finds) == 1:
        return finds[0]

    def find_first(entry: Mapping[str, object]) -> object:
        return next((value for find in finds if (value := find(entry)) is not None), None)

    return find_first


def find_nothing(_entry: Mapping[str, object]) -> None:
    """Find the value of a path that a profile does not have."""


def compile_optional(text: str | None) -> Find:
    """Return the function for paths that a profile may lack."""
    return find_nothing if text is None else compile_paths(text)


def _compile_path(text: str) -> Find:
    steps = [text] if text == ENTRY_NAME else JsonPath(text).steps
    if len(steps) == 1 and isinstance(steps[0], str):
        return methodcaller("get", steps[0])  # faster than a function
    return lambda entry: find_at(steps, entry)


def find_at(steps: Sequence[Step], document: object) -> object:
    """Return what is at the steps of a path, which has no stars; None if it does not exist."""
    for step in steps:
        if isinstance(document, dict):
            document = document.get(step)
        elif isinstance(document, list) and isinstance(step, int) and step < len(document):
            document = document[step]
        else:
            return None
    return document


class Condition:
    """A condition of a profile, compiled. Raises `ValueError` for a wrong path or pattern."""

    def __init__(self, part: ConditionPart) -> None:
        self._find = compile_paths(part.path)
        self._is_missing = part.missing
        self._values = {scalar_text(value).lower() for value in part.values or ()}
        self._pattern = re.compile(part.pattern) if part.pattern else None

    def holds(self, entry: Mapping[str, object]) -> bool:
        """Return whether an entry fulfils the condition."""
        found = self._find(entry)
        if found is None or self._is_missing:
            return found is None and self._is_missing
        text = text_of(found)
        if self._values and text.lower() not in self._values:
            return False
        return self._pattern is None or self._pattern.search(text) is not None


def text_of(value: object) -> str:
    """Return a value as text; "" for what is none, such as a list."""
    if isinstance(value, str):
        return value
    if type(value) is int and not -MAX_INTEGER < value < MAX_INTEGER:
        return ""
    return scalar_text(value)


def read_id(value: object) -> str | None:
    """Return an id of the gateway; None if the value is none."""
    text = text_of(value)
    return None if len(text) > MAX_ID_LENGTH else _printable(text) or None


def read_code(value: object) -> str | None:
    """Return an error code; None without one, which several providers write as zeros."""
    text = _printable(text_of(value)[:MAX_ERROR_CODE_LENGTH]).strip()
    return text if text.strip("0") else None


def read_message_id(value: object) -> int | None:
    """Return mailer's id of a message; None if the value is none."""
    number = read_number(value)
    return number if number is not None and number <= MAX_ID else None


def read_number(value: object) -> int | None:
    """Return a number from 1, which may be a text; None for anything else."""
    text = text_of(value)
    if len(text) > len(str(MAX_ID)) or not (text.isascii() and text.isdigit()) or text[0] == "0":
        return None
    return int(text)


def read_phone(value: object) -> str | None:
    """Return the digits of a phone, a Russian one as in the directory; None if it has none.

    Providers write phones with or without a plus. A phone whose plus is missing may have the
    prefixes for calls inside Russia (8) or to other countries (00).
    """
    text = text_of(value).strip()
    digits = re.sub(r"[^0-9]", "", text[:MAX_ID_LENGTH])
    if not text.startswith("+"):
        digits = digits.removeprefix("00")
        if len(digits) == RUSSIAN_DIGITS and digits[0] == "8":
            digits = f"7{digits[1:]}"
    return digits if 0 < len(digits) <= MAX_PHONE_DIGITS else None


def read_text(text: str, max_length: int) -> str:
    """Return a text that the database can store: without NUL and lone surrogates, and cut."""
    text = text[:max_length]
    if "\0" in text:
        text = text.replace("\0", "")
    return text if text.isascii() else text.encode(errors="replace").decode()


def _printable(text: str) -> str:
    """Remove what is not printable: the database stores neither NUL nor lone surrogates."""
    return text if text.isprintable() else "".join(filter(str.isprintable, text))
