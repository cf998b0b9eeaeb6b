"""Phones as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.client.model import phone_as_written

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
    ],
)
def test_phone_may_be_written_in_many_ways(written: str) -> None:
    assert phone_as_written(written) == ANNA


@pytest.mark.parametrize(
    "written",
    [
        *("", "7916", "phone", "7916123456x", "79161234567 ext. 1", "791612345678", "+"),
        *("+89161234567", "+9161234567", "+447911123456", "19161234567", "()", "7+9161234567"),
        "٧٩١٦١٢٣٤٥٦٧",
    ],
)
def test_what_is_no_phone_of_ours_is_left_as_it_is(written: str) -> None:
    assert phone_as_written(f" {written} ") == written


@thorough
@given(st.from_regex(r"\+?7[0-9 ()-]{10,20}", fullmatch=True) | st.text())
def test_what_is_written_so_stays_so(written: str) -> None:
    once = phone_as_written(written)
    assert phone_as_written(once) == once
