"""Number of SMS parts of a text: limits by example, and random texts against a real split.

A unit is a septet (7 bits) in the default alphabet, GSM 03.38, and two bytes in UCS-2.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.gateway.sms_parts import (
    GSM7_BASIC,
    GSM7_EXTENSION,
    PART_CAPACITY,
    TextSize,
    count_parts,
)


def test_default_alphabet_is_complete() -> None:
    assert len(GSM7_BASIC) == 127  # of 128 codes, one is the escape before an extension character
    assert len(GSM7_EXTENSION) == 10
    assert not GSM7_BASIC & GSM7_EXTENSION


@pytest.mark.parametrize(
    ("text", "units", "parts", "left"),
    [
        ("", 0, 0, 160),
        ("a", 1, 1, 159),
        ("a" * 160, 160, 1, 0),
        ("a" * 161, 161, 2, 145),
        ("a" * 306, 306, 2, 0),
        ("a" * 307, 307, 3, 152),
        ("a" * 1600, 1600, 11, 83),
        ("€" * 80, 160, 1, 0),  # an extension character has two septets: the escape, and another
        ("€" * 81, 162, 2, 143),  # the first part has 76 of them, and one unused septet
        ("a" * 158 + "€", 160, 1, 0),
        ("a" * 159 + "€", 161, 2, 145),
        # a part of several has 153 septets: only the escape would fit as the last one of the first
        ("a" * 152 + "€" + "a" * 151, 305, 2, 0),
        ("a" * 152 + "€" + "a" * 152, 306, 3, 152),
        ("a" * 151 + "€" + "a" * 153, 306, 2, 0),
    ],
)
def test_text_of_the_default_alphabet_is_counted_in_septets(
    text: str, units: int, parts: int, left: int
) -> None:
    assert count_parts(text) == TextSize(len(text), "GSM 03.38", units, parts, left, None)


@pytest.mark.parametrize(
    ("text", "units", "parts", "left", "forced_by"),
    [
        ("Привет, Аня!", 12, 1, 58, "П"),
        ("ж" * 70, 70, 1, 0, "ж"),
        ("ж" * 71, 71, 2, 63, "ж"),
        ("ж" * 134, 134, 2, 0, "ж"),
        ("ж" * 135, 135, 3, 66, "ж"),
        ("€ 5 → 4", 7, 1, 63, "→"),  # a character of two septets is one unit here
        ("Hi 🎉", 5, 1, 65, "🎉"),
        ("a" * 68 + "🎉", 70, 1, 0, "🎉"),
        ("a" * 69 + "🎉", 71, 2, 63, "🎉"),
        # a part of several has 67 units: only half of the surrogate pair would fit as the last one
        ("a" * 66 + "🎉" + "a" * 65, 133, 2, 0, "🎉"),
        ("a" * 66 + "🎉" + "a" * 66, 134, 3, 66, "🎉"),
        ("a" * 65 + "🎉" + "a" * 67, 134, 2, 0, "🎉"),
        ("façade", 6, 1, 64, "ç"),  # the alphabet has only the capital letter
        ("\x1b", 1, 1, 69, "\x1b"),  # the escape is not a character
        ("\t", 1, 1, 69, "\t"),
    ],
)
def test_one_other_character_makes_the_whole_text_utf_16(
    text: str, units: int, parts: int, left: int, forced_by: str
) -> None:
    assert count_parts(text) == TextSize(len(text), "UCS-2", units, parts, left, forced_by)


def split(text: str) -> list[str]:
    """Split a text into parts, each as full as possible."""
    encoding = count_parts(text).encoding
    capacity_of_single, capacity_of_several = PART_CAPACITY[encoding]
    is_single = count_units(text, encoding) <= capacity_of_single
    capacity = capacity_of_single if is_single else capacity_of_several
    parts: list[str] = []
    while text:
        lengths = range(min(capacity, len(text)) + 1)
        length = max(n for n in lengths if count_units(text[:n], encoding) <= capacity)
        parts.append(text[:length])
        text = text[length:]
    return parts


def count_units(text: str, encoding: str) -> int:
    if encoding == "UCS-2":
        return len(text.encode("utf-16-be")) // 2
    return len(text) + sum(text.count(character) for character in GSM7_EXTENSION)


plain_text = st.text(st.sampled_from(sorted(GSM7_BASIC | GSM7_EXTENSION)), max_size=500)
any_text = plain_text | st.text(st.sampled_from("aя€🎉"), max_size=300) | st.text(max_size=300)


@thorough
@given(any_text)
def test_part_count_equals_that_of_a_real_split(text: str) -> None:
    size = count_parts(text)
    parts = split(text)
    assert size.parts == len(parts)
    assert size.units == count_units(text, size.encoding)
    capacity_of_single, capacity_of_several = PART_CAPACITY[size.encoding]
    capacity = capacity_of_single if len(parts) < 2 else capacity_of_several
    used_of_last_part = count_units(parts[-1], size.encoding) if parts else 0
    assert size.left == capacity - used_of_last_part


@thorough
@given(any_text)
def test_ucs_2_is_used_only_for_characters_outside_the_default_alphabet(text: str) -> None:
    size = count_parts(text)
    assert (size.encoding == "UCS-2") == (size.forced_by is not None)
    if size.forced_by is not None:
        before = text[: text.index(size.forced_by)]
        assert count_parts(before).encoding == "GSM 03.38"


@thorough
@given(plain_text, plain_text)
def test_longer_text_never_has_fewer_parts(text: str, more: str) -> None:
    assert count_parts(text + more).parts >= count_parts(text).parts


@thorough
@given(any_text.filter(bool), st.integers(0, 160))
def test_remaining_units_fit_into_the_last_part_and_one_more_does_not(
    text: str, added_units: int
) -> None:
    size = count_parts(text)
    longer = count_parts(text + "a" * added_units)
    assert (longer.parts == size.parts) == (added_units <= size.left)
