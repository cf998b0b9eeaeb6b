"""Cleaning labels, and comparing them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.text import clean_label, compose, fold_label, is_blank

INVISIBLE = ["\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\xad", "\u3164", "\u2800", "\u202e"]
INVISIBLE += ["\ufe0f", "\U000e0001", "\u180b", "\u17b4", "\U000e0100", "\U0001d173", "\ufff9"]


@pytest.mark.parametrize(
    ("label", "cleaned"),
    [
        (" vip", "vip"),
        ("vip\u00a0", "vip"),
        ("\u200b\u200dvip\u2060\ufeff ", "vip"),
        ("v\u200bi\xadp", "vip"),
        ("very\u00a0\u2009important\n", "very important"),
        ("и\u0306", "й"),
        ("e\u200b\u0301", "é"),
        ("क्\u200dष", "क्\u200dष"),
        ("👨\u200d👩", "👨\u200d👩"),
        ("❤\ufe0f", "❤\ufe0f"),
        ("VIP", "VIP"),
        ("a\0b", "a\0b"),
        (" \t\u3000\u2003", ""),
        *((character * 2, "") for character in INVISIBLE),
    ],
)
def test_invisible_characters_of_a_label_are_removed(label: str, cleaned: str) -> None:
    assert clean_label(label) == cleaned


@pytest.mark.parametrize(
    "labels",
    [
        ("VIP", "vip", " Vip "),
        ("ЮГ", "юг"),
        ("Straße", "STRASSE", "strasse"),
        ("ΟΔΟΣ", "οδος", "οδοσ"),
        ("Й", "и\u0306"),
        ("İ", "i\u0307"),
        ("vip", "vi\u200dp", "vip\ufe0f", "v\U000e0100ip", "V\u17b4IP"),
    ],
)
def test_labels_are_compared_without_case(labels: tuple[str, ...]) -> None:
    assert len({fold_label(label) for label in labels}) == 1


@pytest.mark.parametrize("text", ["", " \n\t\u00a0", *INVISIBLE, " ".join(INVISIBLE)])
def test_text_of_invisible_characters_is_blank(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize("text", [".", "\u200bя", "👨\u200d👩", "\0"])
def test_text_with_a_visible_character_is_not_blank(text: str) -> None:
    assert not is_blank(text)


@pytest.mark.parametrize(
    "hostile",
    ["a" + "\u0301\u0327" * 2_000, "\u200c " * 500_000, "e\u0301" * 500_000, "\u200b" * 1_000_000],
    ids=["many marks on a letter", "many joiners", "many letters", "many invisible characters"],
)
def test_text_that_would_take_long_to_normalize_is_not_normalized(
    hostile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    normalized_texts: list[str] = []

    def normalize(_form: str, text: str) -> str:
        normalized_texts.append(text)
        return text

    monkeypatch.setattr("mailer.text.unicodedata.normalize", normalize)
    assert clean_label(hostile) == hostile
    assert compose(hostile) == hostile
    assert not normalized_texts


def test_letters_with_up_to_thirty_marks_are_composed() -> None:
    acute, grave_below = "\u0301", "\u0316"
    assert compose(f"e{acute}" * 2_000) == "é" * 2_000
    assert compose("a" + grave_below * 29 + acute) == "á" + grave_below * 29


@thorough
@given(st.text(st.characters() | st.sampled_from(["\0", "\ud800", *INVISIBLE])))
def test_cleaning_and_folding_twice_changes_nothing(text: str) -> None:
    assert clean_label(clean_label(text)) == clean_label(text)
    assert fold_label(clean_label(text)) == fold_label(fold_label(text)) == fold_label(text)
