"""Parsing of the Retry-After header."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer.gateway.response import parse_retry_after

NOW = datetime(2015, 10, 21, 7, 28, tzinfo=UTC)  # a Wednesday


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("1", 1),
        ("120", 120),
        ("007", 7),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30),
        ("Wednesday, 21-Oct-15 07:29:00 GMT", 60),  # the format of RFC 850
        ("Wed Oct 21 07:29:00 2015", 60),  # the format of asctime(3)
        ("Wed, 21 Oct 2015 10:28:30 +0300", 30),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0),  # in the past
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ],
)
def test_seconds_and_all_date_formats_are_parsed(value: str, seconds: float) -> None:
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        " ",
        "-1",
        "1.5",
        "1e3",
        "+5",
        "soon",
        "\u0661\u0662",  # Arabic digits
        "²",
        "Wed, 32 Oct 2015 07:28:30 GMT",
        "Wed, 21 Oct 99999 07:28:30 GMT",
        "Wed, 21 Oct 2015 07:28:30 +99999999999999",
        "Wed, 21 Oct 2015 25:61:61 GMT",
        "Wed, 21 Oct",
    ],
)
def test_invalid_value_is_ignored(value: str | None) -> None:
    assert parse_retry_after(value, NOW) is None


@pytest.mark.parametrize("value", ["9" * 10, "9" * 400, "9" * 10_000])
def test_very_long_pause_is_a_finite_number(value: str) -> None:
    pause = parse_retry_after(value, NOW)
    assert pause is not None
    assert 999_999_999 <= pause < math.inf


@given(
    value=st.text()
    | st.integers().map(str)
    | st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,6} \d\d:\d\d:\d\d [-+]?\w{1,20}")
)
def test_any_value_is_either_parsed_or_ignored(value: str) -> None:
    pause = parse_retry_after(value, NOW)
    assert pause is None or 0 <= pause < math.inf
