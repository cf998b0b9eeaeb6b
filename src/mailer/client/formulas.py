"""Cells of a CSV file that a spreadsheet would run as formulas, made harmless and taken back.

An apostrophe before it makes a text of what begins as a formula does, as OWASP advises
(https://owasp.org/www-community/attacks/CSV_Injection). Where a file separated by commas is opened
as one separated by semicolons or tabs, cells begin in the middle of others, also of quoted ones: so
it stands after every separator too. Apostrophes that are there get one more, so that taking one
away again gives back every text exactly.
"""

import re

STARTS = r"=+@\t\r\n\uff1d\uff0b\uff0d\uff20\-"
"""What formulas begin with: also the wide forms of those signs, and blanks that are cut off."""
BEFORE_START = rf"(?<![^,;\t\r\n])('*)(?=[{STARTS}])"
"""Where a cell begins under any separator, with its apostrophes, if a formula follows. Python and
PostgreSQL read it alike."""
_MARKED = re.compile(rf"(?<![^,;\t\r\n])'('*)(?=[{STARTS}])")


def harmless(column: str) -> str:
    """Return SQL for a column of text as it stands in an export."""
    pattern = BEFORE_START.replace("'", "''")
    return rf"regexp_replace({column}, '{pattern}', '''\1', 'g')"


def as_given(cell: str) -> str:
    """Return what a cell stood for before it was made harmless; other cells stay as they are."""
    return _MARKED.sub(r"\1", cell) if "'" in cell else cell
