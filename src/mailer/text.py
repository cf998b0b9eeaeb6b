"""Normalization of texts that users write or paste, and comparison of labels.

Labels are tags and names. They are stored in the form of `clean_label` and compared in the form of
`fold_label`.
"""

import re
import unicodedata
from collections.abc import Iterable

_INVISIBLE_RANGES = (
    *(range(0x01, 0x09), range(0x0E, 0x1C), range(0x7F, 0x85), range(0x86, 0xA0)),
    *(range(code, code + 1) for code in (0xAD, 0x34F, 0x61C, 0x180E, 0x200B, 0xFEFF, 0xE0001)),
    *(range(0x200E, 0x2010), range(0x202A, 0x202F), range(0x2060, 0x2070)),
    *(range(0x17B4, 0x17B6), range(0xFFF0, 0xFFFC), range(0x1BCA0, 0x1BCA4)),
    range(0x1D173, 0x1D17B),
)
"""Code points of the characters of `INVISIBLE`."""
_SHAPING_RANGES = (
    *(range(0x200C, 0x200E), range(0x180B, 0x180E), range(0x180F, 0x1810)),
    *(range(0xFE00, 0xFE10), range(0xE0020, 0xE0080), range(0xE0100, 0xE01F0)),
)
"""Code points of the characters of `SHAPING`."""
_BLANK_RANGES = [range(code, code + 1) for code in (0x115F, 0x1160, 0x2800, 0x3164, 0xFFA0)]


def _compile_class(ranges: Iterable[range]) -> re.Pattern[str]:
    """Return a pattern for one or more characters with code points in `ranges`."""
    members = (f"{chr(codes[0])}-{chr(codes[-1])}" for codes in ranges)
    return re.compile(f"[{''.join(members)}]+")


INVISIBLE = _compile_class(_INVISIBLE_RANGES)
"""Invisible characters: control characters except NUL and blanks, soft hyphens, direction marks,
zero-width spaces, word joiners and byte order marks. Characters that shape letters and emoji
(`SHAPING`) are not included: some scripts are misspelt without them."""
SHAPING = _compile_class(_SHAPING_RANGES)
"""Letter joiners, variation selectors and flag tags: invisible when they stand alone."""
JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: between two letters, they change the form of the letters."""
BLANK = _compile_class([*_SHAPING_RANGES, *_BLANK_RANGES])
"""`SHAPING`, and letters and signs that look like blanks."""

_SIMILAR_LETTERS = str.maketrans("АВЕЁКМНОРСТУХІЅЈ", "ABEEKMHOPCTYXISJ")
"""Capital Cyrillic letters, to Latin ones of the same shape. Ё is often written as E."""
_AROUND_WORDS = re.compile(r"^[\W_]+|[\W_]+$")
"""Punctuation, blanks and other signs at the ends of a text."""
MAX_KEYWORD_LENGTH = 100
"""Characters of the longest text that can be a keyword."""

MAX_NORMALIZED_LENGTH = 5_000
"""Characters of the longest text that is normalized: three times a message. A longer text stays as
it is, and validation refuses it."""
MAX_MARKS_PER_LETTER = 30
"""Combining marks on one letter; no language needs more (UAX #15, Stream-Safe Text Format)."""
_TOO_MANY_MARKS = re.compile(rb"[^\0]{%d}" % (MAX_MARKS_PER_LETTER + 1))
"""Too many marks in a row, in the combining classes of a text; the class of a letter is 0."""


def strip_invisible(text: str) -> str:
    """Return a text without its `INVISIBLE` characters."""
    return text if text.isascii() and text.isprintable() else INVISIBLE.sub("", text)


def is_blank(text: str) -> bool:
    """Return whether a text has no visible character."""
    return not BLANK.sub("", strip_invisible(text)).strip()


def compose(text: str) -> str:
    """Return a text with composed letters (NFC): e and an accent become the one character é.

    Composed letters are displayed best and are shortest. A text stays as it is when a letter has
    more than `MAX_MARKS_PER_LETTER` marks, because NFC takes time that grows with the square of
    their number, or when it is longer than `MAX_NORMALIZED_LENGTH`.
    """
    if text.isascii() or len(text) > MAX_NORMALIZED_LENGTH or _has_too_many_marks(text):
        return text
    return unicodedata.normalize("NFC", text)


def _has_too_many_marks(text: str) -> bool:
    if len(text) <= MAX_MARKS_PER_LETTER:
        return False
    combining_classes = bytes(map(unicodedata.combining, text))  # one byte a character
    return _TOO_MANY_MARKS.search(combining_classes) is not None


def clean_label(text: str) -> str:
    """Return a label without invisible characters, with composed letters and single blanks.

    Returns "" when the label has no visible character, and a label longer than
    `MAX_NORMALIZED_LENGTH` as it is.
    """
    if len(text) > MAX_NORMALIZED_LENGTH:
        return text
    label = " ".join(compose(strip_invisible(text)).split()).strip(f"{JOINERS} ")
    return label if label.isascii() or not is_blank(label) else ""


def fold_label(text: str) -> str:
    """Return the form in which labels are compared.

    Labels that differ only in case, or in nothing visible, have the same form: VIP and vip. Case is
    folded as Unicode defines it (full case folding). Labels are never folded in SQL, where the
    result depends on the database's locale.
    """
    if text.isascii():
        return clean_label(text).casefold()
    if len(text) > MAX_NORMALIZED_LENGTH:
        return text.casefold()
    return compose(clean_label(SHAPING.sub("", text)).casefold())


def fold_keyword(text: str) -> str:
    """Return the form in which keywords are compared, such as the stop words of replies.

    Keywords are the same that differ only in case, in blanks and punctuation around them, in
    nothing visible, or in Cyrillic and Latin letters of the same shape as capitals: clients mix
    both alphabets. Returns "" for a text that is too long to be a keyword.
    """
    if len(text) > MAX_KEYWORD_LENGTH:
        return ""
    plain = unicodedata.normalize("NFKC", SHAPING.sub("", strip_invisible(text)))
    words = " ".join(plain.upper().split())
    return _AROUND_WORDS.sub("", words).translate(_SIMILAR_LETTERS)
