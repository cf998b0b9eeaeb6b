"""How many SMS a text takes: the boundaries by example, and every text against cutting it up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.mailing.parts import BASIC, EXTENSION, ROOM, TextSize, size_of


def test_the_default_alphabet_has_all_its_septets() -> None:
    assert len(BASIC) == 127  # of 128 one is the escape
    assert len(EXTENSION) == 10
    assert not BASIC & EXTENSION


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
        ("€" * 80, 160, 1, 0),
        ("€" * 81, 162, 2, 143),  # 76 of them in the first part, which leaves a septet unused
        ("a" * 158 + "€", 160, 1, 0),
        ("a" * 159 + "€", 161, 2, 145),
        # the escape alone would fit as the 153rd septet
        ("a" * 152 + "€" + "a" * 151, 305, 2, 0),
        ("a" * 152 + "€" + "a" * 152, 306, 3, 152),
        ("a" * 151 + "€" + "a" * 153, 306, 2, 0),
    ],
)
def test_a_text_of_the_default_alphabet_counts_by_septets(
    text: str, units: int, parts: int, left: int
) -> None:
    assert size_of(text) == TextSize(len(text), "GSM 03.38", units, parts, left, None)


@pytest.mark.parametrize(
    ("text", "units", "parts", "left", "forced_by"),
    [
        ("Привет, Аня!", 12, 1, 58, "П"),
        ("ж" * 70, 70, 1, 0, "ж"),
        ("ж" * 71, 71, 2, 63, "ж"),
        ("ж" * 134, 134, 2, 0, "ж"),
        ("ж" * 135, 135, 3, 66, "ж"),
        ("€ 5 → 4", 7, 1, 63, "→"),  # what costs two septets is one unit here
        ("Hi 🎉", 5, 1, 65, "🎉"),
        ("a" * 68 + "🎉", 70, 1, 0, "🎉"),
        ("a" * 69 + "🎉", 71, 2, 63, "🎉"),
        # half of the pair would fit as the 67th unit
        ("a" * 66 + "🎉" + "a" * 65, 133, 2, 0, "🎉"),
        ("a" * 66 + "🎉" + "a" * 66, 134, 3, 66, "🎉"),
        ("a" * 65 + "🎉" + "a" * 67, 134, 2, 0, "🎉"),
        ("façade", 6, 1, 64, "ç"),  # the alphabet has the capital alone
        ("\x1b", 1, 1, 69, "\x1b"),  # the escape is no character
        ("\t", 1, 1, 69, "\t"),
    ],
)
def test_one_other_character_makes_the_whole_text_count_by_utf_16(
    text: str, units: int, parts: int, left: int, forced_by: str
) -> None:
    assert size_of(text) == TextSize(len(text), "UCS-2", units, parts, left, forced_by)


def cut(text: str) -> list[str]:
    """Cut a text into the parts that it is sent as, each as full as can be."""
    encoding = size_of(text).encoding
    single, joined = ROOM[encoding]
    room = single if cost_of(text, encoding) <= single else joined
    parts: list[str] = []
    while text:
        end = max(n for n in range(min(room, len(text)) + 1) if cost_of(text[:n], encoding) <= room)
        parts.append(text[:end])
        text = text[end:]
    return parts


def cost_of(text: str, encoding: str) -> int:
    if encoding == "UCS-2":
        return len(text.encode("utf-16-be")) // 2
    return len(text) + sum(text.count(c) for c in EXTENSION)


plain = st.text(st.sampled_from(sorted(BASIC | EXTENSION)), max_size=500)
any_text = plain | st.text(st.sampled_from("aя€🎉"), max_size=300) | st.text(max_size=300)


@thorough
@given(any_text)
def test_the_parts_are_those_that_a_text_is_cut_into(text: str) -> None:
    size = size_of(text)
    parts = cut(text)
    assert size.parts == len(parts)
    assert size.units == cost_of(text, size.encoding)
    single, joined = ROOM[size.encoding]
    last = cost_of(parts[-1], size.encoding) if parts else 0
    assert size.left == (single if len(parts) < 2 else joined) - last


@thorough
@given(any_text)
def test_ucs_2_is_for_what_the_default_alphabet_lacks_alone(text: str) -> None:
    size = size_of(text)
    assert (size.encoding == "UCS-2") == (size.forced_by is not None)
    if size.forced_by is not None:
        before = text[: text.index(size.forced_by)]
        assert size_of(before).encoding == "GSM 03.38"


@thorough
@given(plain, plain)
def test_a_longer_text_never_takes_fewer_parts(text: str, more: str) -> None:
    assert size_of(text + more).parts >= size_of(text).parts


@thorough
@given(any_text, st.integers(0, 160))
def test_what_is_left_fits_and_one_unit_more_does_not(text: str, more: int) -> None:
    size = size_of(text)
    if not text:
        return
    grown = size_of(text + "a" * more)
    assert (grown.parts == size.parts) == (more <= size.left)
