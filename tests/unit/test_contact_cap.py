"""The setting of the contact cap."""

from datetime import timedelta
from pathlib import Path

import pytest

from mailer.contact_cap import ContactCap
from mailer.errors import StartError
from mailer.settings import Settings, read_settings

NO_FILE = Path("/nonexistent/.env")


@pytest.mark.parametrize(
    ("text", "messages", "span"),
    [
        ("3/7d", 3, timedelta(days=7)),
        ("1/24h", 1, timedelta(hours=24)),
        (" 100/90d ", 100, timedelta(days=90)),
        ("1/1h", 1, timedelta(hours=1)),
    ],
)
def test_a_cap_is_a_number_of_messages_and_a_span(
    text: str, messages: int, span: timedelta
) -> None:
    cap = ContactCap.parse(text)
    assert (cap.messages, cap.span) == (messages, span)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3", "must be like 3/7d"),
        ("3/7", "must be like 3/7d"),
        ("3/7w", "must be like 3/7d"),
        ("3/7d\n/", "control character"),
        ("-1/7d", "must be like 3/7d"),
        ("٣/7d", "must be like 3/7d"),
        ("0/7d", "the number of messages must be from 1 to 100"),
        ("101/7d", "the number of messages must be from 1 to 100"),
        ("3/0h", "the span must be from 1h to 90d"),
        ("3/91d", "the span must be from 1h to 90d"),
        ("3/2161h", "the span must be from 1h to 90d"),
    ],
)
def test_a_wrong_cap_stops_the_start_with_one_line_that_names_it(text: str, reason: str) -> None:
    with pytest.raises(StartError) as refused:
        read_settings({"MAILER_CONTACT_CAP": text}, NO_FILE)
    assert str(refused.value).startswith("MAILER_CONTACT_CAP: ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_there_is_no_cap_unless_it_is_set() -> None:
    assert Settings().parsed_contact_cap is None
    settings = read_settings({"MAILER_CONTACT_CAP": "3/7d"}, NO_FILE)
    assert settings.parsed_contact_cap == ContactCap(3, 7, "d")
