"""The time at which the daily report of a day is due."""

from datetime import date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from mailer.daily_report.schedule import newest_due
from mailer.mail.sending import MAX_RETRY_DELAY, MIN_RETRY_DELAY, retry_delay

SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("zone", "at", "day", "due"),  # the report of `day` is due at the local time `at`: at `due`
    [
        ("UTC", "08:00", "2030-01-14", "2030-01-15T08:00:00Z"),
        ("Europe/Moscow", "08:00", "2030-01-14", "2030-01-15T05:00:00Z"),
        ("Asia/Vladivostok", "00:00", "2030-01-14", "2030-01-14T14:00:00Z"),
        ("Pacific/Honolulu", "23:59", "2030-01-14", "2030-01-16T09:59:00Z"),
        # clocks go forward from 02:00 to 03:00, so there is no 02:30
        ("Europe/Berlin", "02:30", "2030-03-30", "2030-03-31T01:00:00Z"),
        ("Europe/Berlin", "03:00", "2030-03-30", "2030-03-31T01:00:00Z"),
        ("Europe/Berlin", "01:59", "2030-03-30", "2030-03-31T00:59:00Z"),
        # clocks go back from 03:00 to 02:00, so 02:30 comes twice
        ("Europe/Berlin", "02:30", "2030-10-26", "2030-10-27T00:30:00Z"),
        ("Europe/Berlin", "03:00", "2030-10-26", "2030-10-27T02:00:00Z"),
        # this day has no midnight
        ("America/Sao_Paulo", "00:00", "2018-11-03", "2018-11-04T03:00:00Z"),
        # there was no 30 December: a report due on it is due at the start of the 31st
        ("Pacific/Apia", "08:00", "2011-12-29", "2011-12-30T10:00:00Z"),
        ("Pacific/Apia", "08:00", "2011-12-30", "2011-12-30T18:00:00Z"),
    ],
)
def test_report_is_due_at_the_first_moment_at_or_after_its_local_time(
    zone: str, at: str, day: str, due: str
) -> None:
    moment = datetime.fromisoformat(due)
    clock, zone_info = time.fromisoformat(at), ZoneInfo(zone)
    assert newest_due(moment, clock, zone_info) == date.fromisoformat(day)
    assert newest_due(moment - SECOND, clock, zone_info) < date.fromisoformat(day)


@pytest.mark.parametrize("at", [f"{hour:02}:{minute}" for hour in range(24) for minute in (10, 40)])
@pytest.mark.parametrize(
    ("zone", "first_moment"),  # about a day before the clocks change
    [
        ("Europe/Berlin", "2030-03-30T00:00:00Z"),
        ("Europe/Berlin", "2030-10-26T00:00:00Z"),
        ("Australia/Lord_Howe", "2030-04-06T00:00:00Z"),
        ("America/Sao_Paulo", "2018-11-03T00:00:00Z"),
        ("Pacific/Apia", "2011-12-29T00:00:00Z"),
    ],
)
def test_reports_become_due_one_day_after_the_other(zone: str, first_moment: str, at: str) -> None:
    start, clock = datetime.fromisoformat(first_moment), time.fromisoformat(at)
    every_ten_minutes = [start + timedelta(minutes=10 * n) for n in range(72 * 6)]  # in 72 hours
    days = [newest_due(moment, clock, ZoneInfo(zone)) for moment in every_ten_minutes]
    steps = {later - earlier for earlier, later in pairwise(days)}
    assert steps == {timedelta(0), timedelta(days=1)}


def test_retry_delay_grows_to_a_quarter_of_an_hour() -> None:
    delays = [retry_delay(attempts) for attempts in range(1, 200)]
    assert delays[0] == MIN_RETRY_DELAY
    assert delays == sorted(delays)
    assert delays[5] == delays[-1] == MAX_RETRY_DELAY == timedelta(minutes=15)
