"""Normalization of phones: from the usual written forms to the stored form.

The API accepts only the stored form; files and pages accept every usual way to write a phone.
"""

import re
import unicodedata

from mailer.text import strip_invisible

STORED_FORM = re.compile(r"7[0-9]{10}")
"""The stored form; use it with `fullmatch`."""
NATIONAL_DIGITS, FULL_DIGITS = 10, 11
"""Number of digits without and with the prefix 7 or 8."""
NATIONAL_FIRST_DIGITS = "34569"
"""First digits of area and operator codes; 7 and 8 are the prefix of a full phone."""
MAX_WRITTEN_LENGTH = 64
"""Characters of the longest text that is read as a phone: eleven digits and many separators."""
DASHES = "\u058a\u05be\u2010-\u2015\u2043\u2212\u2e3a\u2e3b\u30fc"
"""Separators besides the hyphen: dashes of every width, the minus sign and hyphen bullets."""
_WRITTEN = re.compile(
    rf"(?:(?:tel|тел)[.:]\s*|['\u2019])?\(?(\+?)([0-9\s().\u00b7\-{DASHES}/]+)", re.IGNORECASE
)
"""A written phone, perhaps after `tel:` or after the apostrophe by which a spreadsheet marks text.

Its groups: the plus, if there is one; the digits and separators after it.
"""
_FLOAT = re.compile(r"([0-9]{10,11})[.,]0+")
"""A phone that a program wrote as a decimal fraction, such as 79161234567.0; no digit is lost."""
_EXACT = re.compile(r"([0-9])[.,]([0-9]{9,10})e\+?0?(9|10)", re.IGNORECASE)
"""A phone that a program wrote as a number with an exponent and with all digits: 7.9161234567E10.

Its groups: the first digit, the other digits, and the exponent, which is their number.
"""
_ROUNDED = re.compile(r"[0-9]([.,][0-9]+)?e\+?[0-9]{1,2}", re.IGNORECASE)
"""A number that a spreadsheet rounded, such as 7,91612E+10."""
ROUNDED_MESSAGE = (
    "was rounded by a spreadsheet, and its digits are lost: give the column the format Text,"
    " then enter the phones again"
)


def normalize_phone(text: str) -> str:
    """Return the stored form of a written phone, such as +7 (916) 123-45-67 or 8 916 123 45 67.

    Eleven digits must begin with 7 or 8, and with 7 after a plus. Ten digits must begin like an
    area or operator code (`NATIONAL_FIRST_DIGITS`): if they begin with 7 or 8, a digit is missing.
    Digits and signs may be full-width; invisible characters are ignored. Any other text is
    returned without the blanks around it, and validation refuses it.
    """
    if STORED_FORM.fullmatch(text):
        return text
    if len(text) > MAX_WRITTEN_LENGTH:
        return text.strip()
    plain = unicodedata.normalize("NFKC", strip_invisible(text)).strip()
    if number := _FLOAT.fullmatch(plain):
        plain = number[1]
    plain = _without_exponent(plain)
    if written := _WRITTEN.fullmatch(plain):
        plus, digits = written[1], re.sub(r"[^0-9]", "", written[2])
        if len(digits) == NATIONAL_DIGITS and digits[0] in NATIONAL_FIRST_DIGITS and not plus:
            return f"7{digits}"
        if len(digits) == FULL_DIGITS and (digits[0] == "7" or (digits[0] == "8" and not plus)):
            return f"7{digits[1:]}"
    return text.strip()


def _without_exponent(text: str) -> str:
    """Return the digits of a number with an exponent that has all of them; else the text."""
    number = _EXACT.fullmatch(text)
    has_all_digits = number is not None and len(number[2]) == int(number[3])
    return number[1] + number[2] if number and has_all_digits else text


def is_rounded(text: str) -> bool:
    """Return whether a text is a number rounded by a spreadsheet, such as 7,91612E+10.

    Digits of such a phone are lost.
    """
    number = text.strip()
    return _ROUNDED.fullmatch(number) is not None and _without_exponent(number) == number
