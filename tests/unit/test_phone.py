"""Normalizing phone numbers in all usual formats."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.client.phone import is_rounded, normalize_phone

ANNA = "79161234567"


@pytest.mark.parametrize(
    "text",
    [
        ANNA,
        "+79161234567",
        "+7 (916) 123-45-67",
        "8 916 123 45 67",
        "8(916)1234567",
        "916 123-45-67",
        "9161234567",
        " 7.916.123.45.67\n",
        "+7\u00a0916\u00a0123\u201345\u201367",
        "7 916 123/45/67",
        "89161234567",
        "(+7) 916 1234567",
        "tel:+7-916-123-45-67",
        "Тел. 8 (916) 123 45 67",
        "'+79161234567",
        "\u201979161234567",
        "+7\u2009916\u202f123\u2212\u202f45\u2014\u201167",
        "\ufeff\u202a+7 916 123-45-67\u202c\u200b",
        "7\u00ad916\u2060123\u200b4567",
        "\uff0b\uff17\uff08\uff19\uff11\uff16\uff09\uff11\uff12\uff13\uff0d\uff14\uff15\uff0d\uff16\uff17",
        "79161234567.0",
        "9161234567,00",
        "7.9161234567E10",
        "7,9161234567e+10",
        "9.161234567E9",
        "7·916·123·45·67",
    ],
)
def test_all_usual_phone_formats_are_normalized(text: str) -> None:
    assert normalize_phone(text) == ANNA


@pytest.mark.parametrize(
    "text",
    [
        *("", "7916", "phone", "7916123456x", "79161234567 ext. 1", "791612345678", "+"),
        *("+89161234567", "+9161234567", "+447911123456", "19161234567", "()", "7+9161234567"),
        *("٧٩١٦١٢٣٤٥٦٧", "7,91612E+10", "7.916123456E10", "7.91612345678E10", "7\x00 9161234567"),
        *("8 (916) 123-45-6", "7 916 123 45 6", "7707083893", "1161234567", "0161234567"),
        *("tel:", "tel:tel:79161234567", "7" + "-" * 70 + "9161234567"),
    ],
)
def test_text_that_is_no_russian_phone_is_only_stripped(text: str) -> None:
    assert normalize_phone(f" {text} ") == text


@thorough
@given(st.from_regex(r"\+?7[0-9 ()-]{10,20}", fullmatch=True) | st.text())
def test_normalizing_twice_changes_nothing(text: str) -> None:
    normalized = normalize_phone(text)
    assert normalize_phone(normalized) == normalized


@pytest.mark.parametrize("text", ["7,91612E+10", "7.916123456e10", " 8E+10 "])
def test_phone_rounded_by_a_spreadsheet_is_detected(text: str) -> None:
    assert is_rounded(text)


@pytest.mark.parametrize("text", [ANNA, "7.9161234567E10", "7,91612", "E+10", "phone", ""])
def test_other_text_does_not_count_as_rounded(text: str) -> None:
    assert not is_rounded(text)
