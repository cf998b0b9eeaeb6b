"""The search for phones on the pages: by a whole phone, or by its last digits.

The input of a search is a `PhoneSearch`; `phone_matches` is its condition in SQL.
"""

import re
from typing import Annotated, Any

from msgspec import Meta
from sqlalchemy import ColumnElement, and_, func

from mailer.client.phone import (
    MIN_LAST_DIGITS,
    NATIONAL_DIGITS,
    STORED_FORM,
    normalize_phone_search,
)

SEARCH_FORM = re.compile(rf"{STORED_FORM.pattern}|[0-9]{{{MIN_LAST_DIGITS},{NATIONAL_DIGITS}}}")
"""A `PhoneSearch`; use it with `fullmatch`."""
PhoneSearch = Annotated[
    str,
    Meta(
        pattern=rf"^({SEARCH_FORM.pattern})$",
        max_length=11,  # `$` also matches before a line feed at the end
        extra={
            "rule": "must be a phone, such as 79161234567, or its last 4 to 10 digits",
            "normalize": normalize_phone_search,
        },
    ),
]
"""A phone in its stored form, or its last digits."""
AFTER_DIGITS = chr(ord("9") + 1)
"""The character after the digits in the order of ASCII."""


def is_phone_search(text: str) -> bool:
    """Return whether a text is a phone in its stored form, or last digits of one."""
    return SEARCH_FORM.fullmatch(text) is not None


def is_whole_phone(searched: str) -> bool:
    """Return whether a search has a whole phone, and not only its last digits."""
    return STORED_FORM.fullmatch(searched) is not None


def phone_matches(column: ColumnElement[Any], searched: str) -> ColumnElement[bool]:
    """Return the condition that the phone in a column is the searched one, or ends with the digits.

    Phones that end with some digits begin with them when they are reversed. So they are a range of
    the indexes on reversed phones, whose operators `~>=~` and `~<~` compare characters as ASCII,
    whatever the database's locale.
    """
    if is_whole_phone(searched):
        return column == searched
    reversed_phone, beginning = func.reverse(column), searched[::-1]
    return and_(
        reversed_phone.bool_op("~>=~")(beginning),
        reversed_phone.bool_op("~<~")(beginning + AFTER_DIGITS),
    )
