"""Phones as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.client.phone import is_rounded, normalize_phone

ANNA = "79161234567"


@pytest.mark.parametrize(
    "written",
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
        "7·916·123·45·67",
    ],
)
def test_phone_may_be_written_in_many_ways(written: str) -> None:
    assert normalize_phone(written) == ANNA


@pytest.mark.parametrize(
    "written",
    [
        *("", "7916", "phone", "7916123456x", "79161234567 ext. 1", "791612345678", "+"),
        *("+89161234567", "+9161234567", "+447911123456", "19161234567", "()", "7+9161234567"),
        *("٧٩١٦١٢٣٤٥٦٧", "7,91612E+10", "7.9161234567e10", "7\x00 9161234567"),
        *("8 (916) 123-45-6", "7 916 123 45 6", "7707083893", "1161234567", "0161234567"),
        *("tel:", "tel:tel:79161234567", "7" + "-" * 70 + "9161234567"),
    ],
)
def test_what_is_no_phone_of_ours_is_left_as_it_is(written: str) -> None:
    assert normalize_phone(f" {written} ") == written


@thorough
@given(st.from_regex(r"\+?7[0-9 ()-]{10,20}", fullmatch=True) | st.text())
def test_what_is_written_so_stays_so(written: str) -> None:
    once = normalize_phone(written)
    assert normalize_phone(once) == once


@pytest.mark.parametrize("written", ["7,91612E+10", "7.9161234567e10", " 8E+10 "])
def test_phone_that_a_spreadsheet_rounded_is_known_as_such(written: str) -> None:
    assert is_rounded(written)


@pytest.mark.parametrize("written", [ANNA, "7,91612", "E+10", "phone", ""])
def test_no_other_text_counts_as_rounded(written: str) -> None:
    assert not is_rounded(written)
