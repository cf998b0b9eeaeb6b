"""Texts that people write or paste: what in them cannot be seen."""

from itertools import chain

_UNSEEN = (
    *(range(0x01, 0x09), range(0x0E, 0x1C), range(0x7F, 0x85), range(0x86, 0xA0)),
    *(range(each, each + 1) for each in (0xAD, 0x34F, 0x61C, 0x180E, 0x200B, 0xFEFF)),
    *(range(0x200E, 0x2010), range(0x202A, 0x202F), range(0x2060, 0x2070)),
)
INVISIBLE = dict.fromkeys(chain.from_iterable(_UNSEEN))
"""Characters without a look of their own, for `str.translate` to drop: control characters but NUL
and blanks, soft hyphens, marks of direction, zero-width spaces, joiners of words and byte order
marks. Joiners of letters (U+200C, U+200D) are none of them: some scripts are misspelt without."""


def strip_invisible(text: str) -> str:
    """Return a text without its `INVISIBLE` characters."""
    return text if text.isascii() and text.isprintable() else text.translate(INVISIBLE)
