"""Texts that people write or paste: what counts of them, and when two are the same.

Labels, such as tags and names, are stored as `clean_label` has them, and compared by `fold_label`.
"""

import re
import unicodedata
from collections.abc import Iterable

_UNSEEN = (
    *(range(0x01, 0x09), range(0x0E, 0x1C), range(0x7F, 0x85), range(0x86, 0xA0)),
    *(range(each, each + 1) for each in (0xAD, 0x34F, 0x61C, 0x180E, 0x200B, 0xFEFF, 0xE0001)),
    *(range(0x200E, 0x2010), range(0x202A, 0x202F), range(0x2060, 0x2070)),
    *(range(0x17B4, 0x17B6), range(0xFFF0, 0xFFFC), range(0x1BCA0, 0x1BCA4)),
    range(0x1D173, 0x1D17B),
)
_SHAPING = (
    *(range(0x200C, 0x200E), range(0x180B, 0x180E), range(0x180F, 0x1810)),
    *(range(0xFE00, 0xFE10), range(0xE0020, 0xE0080), range(0xE0100, 0xE01F0)),
)
_LOOKS_BLANK = [range(each, each + 1) for each in (0x115F, 0x1160, 0x2800, 0x3164, 0xFFA0)]


def _any_of(ranges: Iterable[range]) -> re.Pattern[str]:
    """Compile a pattern: a text without such characters, the usual one, costs one fast search."""
    return re.compile(f"[{''.join(f'{chr(each[0])}-{chr(each[-1])}' for each in ranges)}]+")


INVISIBLE = _any_of(_UNSEEN)
"""Characters without a look of their own: control characters but NUL and blanks, soft hyphens,
marks of direction, zero-width spaces, joiners of words and byte order marks. What gives letters and
pictures their shape is none of them: some scripts are misspelt without."""
SHAPING = _any_of(_SHAPING)
"""Joiners of letters, selectors of variants, and tags of flags: they show nothing alone."""
JOINERS = "\u200c\u200d"
BLANK = _any_of([*_SHAPING, *_LOOKS_BLANK])
"""`SHAPING`, and letters and signs that look like blanks."""

LONGEST = 5_000
"""Characters of the longest text that is normalized: thrice those of a message. One that is longer
stays as it is, to be refused."""
MOST_MARKS = 30
"""Marks on one letter, beyond all languages (UAX #15, Stream-Safe Text Format)."""
_TOO_MANY_MARKS = re.compile(rb"[^\0]{%d}" % (MOST_MARKS + 1))


def strip_invisible(text: str) -> str:
    """Return a text without its `INVISIBLE` characters."""
    return text if text.isascii() and text.isprintable() else INVISIBLE.sub("", text)


def is_blank(text: str) -> bool:
    """Return whether nobody can see anything of a text."""
    return not BLANK.sub("", strip_invisible(text)).strip()


def compose(text: str) -> str:
    """Return a text with its letters composed (NFC): so they show best, and cost least.

    One with letters of more than `MOST_MARKS` marks stays as it is: to order these costs the square
    of their number.
    """
    if text.isascii() or len(text) > LONGEST or _has_too_many_marks(text):
        return text
    return unicodedata.normalize("NFC", text)


def _has_too_many_marks(text: str) -> bool:
    if len(text) <= MOST_MARKS:
        return False
    classes = bytes(map(unicodedata.combining, text))  # of each character, 0 for what is no mark
    return _TOO_MANY_MARKS.search(classes) is not None


def clean_label(text: str) -> str:
    """Return a label without what nobody sees, its letters composed and its blanks single.

    The label is empty when nothing of it can be seen.
    """
    if len(text) > LONGEST:
        return text
    label = " ".join(compose(strip_invisible(text)).split()).strip(f"{JOINERS} ")
    return label if label.isascii() or not is_blank(label) else ""


def fold_label(text: str) -> str:
    """Return what two labels have in common when they differ in case alone, or in nothing to see.

    By the full case folding of Unicode, whatever locale the database has: labels are compared as
    this folds them, and never folded in SQL.
    """
    if text.isascii():
        return clean_label(text).casefold()
    if len(text) > LONGEST:
        return text.casefold()
    return compose(clean_label(SHAPING.sub("", text)).casefold())
