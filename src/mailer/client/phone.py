"""Phones as people and programs write them, and the one form that is stored.

The API takes the stored form alone; files and pages take every usual way of writing it.
"""

import re
import unicodedata

from mailer.text import strip_invisible

STORED = re.compile(r"7[0-9]{10}")
"""The form that is stored; to be matched as a whole."""
NATIONAL, WHOLE = 10, 11
"""Digits of a phone without and with what stands before the operator's code."""
NATIONAL_STARTS = "34569"
"""First digits of a national number; 7 and 8 begin a whole phone."""
LONGEST_WRITTEN = 64
"""Characters of the longest text that is read as a phone: eleven digits with much between them."""
DASHES = "\u058a\u05be\u2010-\u2015\u2043\u2212\u2e3a\u2e3b\u30fc"
"""Beside the hyphen: dashes of every width, the minus sign and hyphen bullets."""
_WRITTEN = re.compile(
    rf"(?:(?:tel|тел)[.:]\s*|['\u2019])?\(?(\+?)([0-9\s().\u00b7\-{DASHES}/]+)", re.IGNORECASE
)
_FLOAT = re.compile(r"([0-9]{10,11})[.,]0+")
"""A number that some program took for a fraction, with all its digits."""
_ROUNDED = re.compile(r"[0-9]([.,][0-9]+)?e\+?[0-9]{1,2}", re.IGNORECASE)
ROUNDED = (
    "was rounded by a spreadsheet, and its digits are lost: give the column the format Text,"
    " then enter the phones again"
)


def normalize_phone(text: str) -> str:
    """Return the phone that somebody wrote, such as +7 (916) 123-45-67 or 8 916 123 45 67.

    Eleven digits must begin with 7 or 8, with 7 after a plus. Ten must begin as an area or an
    operator does (`NATIONAL_STARTS`): with 7 or 8 they lack a digit. Digits and signs may have full
    width; invisible characters count for nothing. A text that is no such phone is returned as it
    is, without blanks around it, to be refused.
    """
    if STORED.fullmatch(text):
        return text
    if len(text) > LONGEST_WRITTEN:
        return text.strip()
    plain = unicodedata.normalize("NFKC", strip_invisible(text)).strip()
    if number := _FLOAT.fullmatch(plain):
        plain = number[1]
    if written := _WRITTEN.fullmatch(plain):
        plus, digits = written[1], re.sub(r"[^0-9]", "", written[2])
        if len(digits) == NATIONAL and digits[0] in NATIONAL_STARTS and not plus:
            return f"7{digits}"
        if len(digits) == WHOLE and (digits[0] == "7" or (digits[0] == "8" and not plus)):
            return f"7{digits[1:]}"
    return text.strip()


def is_rounded(text: str) -> bool:
    """Return whether a spreadsheet wrote a number so, such as 7,91612E+10: its digits are lost."""
    return _ROUNDED.fullmatch(text.strip()) is not None
