"""Escaping of CSV cells that a spreadsheet would run as formulas, and the reverse.

An apostrophe before a formula makes it plain text, as OWASP advises
(https://owasp.org/www-community/attacks/CSV_Injection). It is added at the start of a cell and
also after every comma, semicolon, tab and line end inside the cell: a program that opens the file
with another delimiter lets new cells begin there, even inside quotes. Where apostrophes already
precede the formula one more is added, so that removing one restores every text exactly.
"""

import re

FORMULA_STARTS = r"=+@\t\r\n\uff1d\uff0b\uff0d\uff20\-"
"""First characters of formulas: the signs, their full-width forms, and blanks that spreadsheets
skip."""
BEFORE_FORMULA = rf"(?<![^,;\t\r\n])('*)(?=[{FORMULA_STARTS}])"
"""The start of a cell under any delimiter, with its apostrophes, when a formula follows. Python and
PostgreSQL interpret the pattern in the same way."""
_ESCAPED_FORMULA = re.compile(rf"(?<![^,;\t\r\n])'('*)(?=[{FORMULA_STARTS}])")


def escape_formula_sql(column: str) -> str:
    """Return an SQL expression that escapes the formulas in a text column."""
    pattern = BEFORE_FORMULA.replace("'", "''")
    return rf"regexp_replace({column}, '{pattern}', '''\1', 'g')"


def unescape_formula(cell: str) -> str:
    """Return the text of a cell before it was escaped; cells without an escape stay as they are."""
    return _ESCAPED_FORMULA.sub(r"\1", cell) if "'" in cell else cell
