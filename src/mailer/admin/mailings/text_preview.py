"""The size of a text as SMS, and why it is sent in Unicode."""

import unicodedata
from collections import Counter

import msgspec

from mailer.admin.language import gettext_noop
from mailer.gateway.sms_parts import (
    GSM7_BASIC,
    GSM7_EXTENSION,
    PART_CAPACITY,
    SmsEncoding,
    TextSize,
    count_parts,
)

RUSSIAN_LETTERS = frozenset("абвгдеёжзийклмнопрстуфхцчшщъыьэюя")
RUSSIAN = gettext_noop("Russian text")
SCRIPT_LABELS = {
    "CYRILLIC": gettext_noop("Cyrillic text"),
    "GREEK": gettext_noop("Greek text"),
    "ARMENIAN": gettext_noop("Armenian text"),
    "GEORGIAN": gettext_noop("Georgian text"),
    "HEBREW": gettext_noop("Hebrew text"),
    "ARABIC": gettext_noop("Arabic text"),
    "CJK": gettext_noop("Chinese text"),
    "HIRAGANA": gettext_noop("Japanese text"),
    "KATAKANA": gettext_noop("Japanese text"),
    "HANGUL": gettext_noop("Korean text"),
    "THAI": gettext_noop("Thai text"),
    "DEVANAGARI": gettext_noop("Devanagari text"),
}
"""What a text is called if most of its letters are of a script: the first word of their names in
Unicode. Of a text with two of these scripts, the one with more letters counts."""


class TextPreview(msgspec.Struct, frozen=True):
    """The size of a text as SMS.

    A text is sent in the GSM 03.38 alphabet, or in Unicode if a character is not in that alphabet.
    """

    size: TextSize
    script: str | None
    """A label of `SCRIPT_LABELS` if most letters are of a script that needs Unicode; else None."""
    unicode_characters: int
    """How many characters need Unicode."""
    unicode_position: int
    """Position, from 1, of the only character that needs Unicode, or of its first occurrence; 0 if
    there is none, or more than one."""

    @property
    def unicode_character_name(self) -> str:
        """Code point and name of the character that needs Unicode: it may be invisible."""
        character = self.size.forced_by or " "
        return f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()

    @property
    def part_capacity(self) -> int:
        """Capacity of each part of this text, in characters of its encoding."""
        return self._part_capacity(self.size.encoding)

    @property
    def gsm_part_capacity(self) -> int:
        """Capacity that each part would have in GSM 03.38."""
        return self._part_capacity("GSM 03.38")

    def _part_capacity(self, encoding: SmsEncoding) -> int:
        """Return the capacity of a part; it is smaller if there are several parts."""
        single, joined = PART_CAPACITY[encoding]
        return joined if self.size.parts > 1 else single


def preview_text(text: str) -> TextPreview:
    """Return the size of a text as SMS, and why it needs Unicode."""
    size = count_parts(text)
    in_unicode = [char for char in text if char not in GSM7_BASIC and char not in GSM7_EXTENSION]
    is_single = len(set(in_unicode)) == 1
    return TextPreview(
        size,
        script=_script_label(text) if in_unicode else None,
        unicode_characters=len(in_unicode),
        unicode_position=text.index(in_unicode[0]) + 1 if is_single else 0,
    )


def _script_label(text: str) -> str | None:
    """Return the label of the script of most letters; None if that is no script with a label."""
    letters = [char for char in text.lower() if char.isalpha()]
    by_script = Counter(unicodedata.name(char, "").partition(" ")[0] for char in letters)
    [(script, count)] = by_script.most_common(1) or [("", 0)]
    if script not in SCRIPT_LABELS or 2 * count < len(letters):
        return None
    of_script = {char for char in letters if unicodedata.name(char, "").startswith(script)}
    return RUSSIAN if of_script <= RUSSIAN_LETTERS else SCRIPT_LABELS[script]
