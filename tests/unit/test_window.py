"""Sending windows: examples with clock changes, and all time zones against a reference.

A clock change is the moment at which a time zone changes its offset from UTC, for example to summer
time.
"""

import random
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.examples import EXAMPLES, thorough
from tests.factories import DAY, HOUR

from mailer.mailing.window import SendingWindow, _offset_changes_of_month, offsets_of

SECOND = timedelta(seconds=1)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("opens", "closes", "local", "is_open"),
    [
        ("09:00", "18:00", "08:59:59.999999", False),
        ("09:00", "18:00", "09:00", True),
        ("09:00", "18:00", "17:59:59.999999", True),
        ("09:00", "18:00", "18:00", False),
        ("09:00", "18:00", "00:00", False),
        ("22:00", "06:00", "22:00", True),
        ("22:00", "06:00", "23:59:59", True),
        ("22:00", "06:00", "00:00", True),
        ("22:00", "06:00", "05:59:59", True),
        ("22:00", "06:00", "06:00", False),
        ("22:00", "06:00", "21:59:59", False),
        ("00:00", "23:59:59", "23:59:58", True),
        ("00:00", "23:59:59", "23:59:59", False),
        ("23:59:59", "00:00", "23:59:59.5", True),
        ("23:59:59", "00:00", "00:00", False),
        ("09:00:01", "09:00", "09:00:00.5", False),
        ("09:00:01", "09:00", "08:59:59", True),
    ],
)
def test_window_includes_its_opening_and_excludes_its_closing(
    opens: str, closes: str, local: str, *, is_open: bool
) -> None:
    window = SendingWindow(time.fromisoformat(opens), time.fromisoformat(closes))
    assert window.is_open(time.fromisoformat(local)) is is_open


@pytest.mark.parametrize(
    ("zone", "opens", "closes", "at", "opening"),
    [
        # an ordinary day
        ("UTC", "09:00", "18:00", "2026-03-04T08:00Z", "2026-03-04T09:00Z"),
        ("UTC", "09:00", "18:00", "2026-03-04T12:34:56.789Z", "2026-03-04T12:34:56.789Z"),
        ("UTC", "09:00", "18:00", "2026-03-04T18:00Z", "2026-03-05T09:00Z"),
        ("UTC", "22:00", "06:00", "2026-03-04T12:00Z", "2026-03-04T22:00Z"),
        ("UTC", "22:00", "06:00", "2026-03-04T03:00Z", "2026-03-04T03:00Z"),
        ("Asia/Kathmandu", "09:00", "18:00", "2026-03-04T00:00Z", "2026-03-04T03:15Z"),
        ("Europe/Moscow", "09:00", "18:00", "2026-03-04T20:00-05:00", "2026-03-05T06:00Z"),
        # the clocks skip 02:00-03:00: a window that opens then opens at the jump, or the next day
        ("Europe/Berlin", "02:30", "04:00", "2026-03-29T00:00Z", "2026-03-29T01:00Z"),
        ("Europe/Berlin", "02:30", "02:45", "2026-03-29T00:00Z", "2026-03-30T00:30Z"),
        ("Europe/Berlin", "02:00", "03:00", "2026-03-29T00:00Z", "2026-03-30T00:00Z"),
        ("America/New_York", "02:30", "09:00", "2026-03-08T06:00Z", "2026-03-08T07:00Z"),
        ("America/New_York", "23:00", "02:30", "2026-03-08T07:00Z", "2026-03-09T03:00Z"),
        ("Australia/Lord_Howe", "02:15", "02:45", "2026-10-03T15:00Z", "2026-10-03T15:30Z"),
        ("Australia/Lord_Howe", "02:00", "02:30", "2026-10-03T15:00Z", "2026-10-04T15:00Z"),
        # the clocks show 02:00-03:00 twice, so the window opens twice
        ("Europe/Berlin", "02:30", "02:45", "2026-10-25T00:00Z", "2026-10-25T00:30Z"),
        ("Europe/Berlin", "02:30", "02:45", "2026-10-25T00:50Z", "2026-10-25T01:30Z"),
        ("America/New_York", "01:15", "01:30", "2026-11-01T05:30Z", "2026-11-01T06:15Z"),
        ("Australia/Lord_Howe", "01:40", "01:50", "2026-04-04T14:50Z", "2026-04-04T15:10Z"),
        ("Australia/Lord_Howe", "01:45", "02:10", "2026-04-04T14:59Z", "2026-04-04T14:59Z"),
        # Ramadan: the clocks of Casablanca go back, and forward again within weeks
        ("Africa/Casablanca", "02:30", "02:40", "2026-02-15T01:45Z", "2026-02-15T02:30Z"),
        ("Africa/Casablanca", "02:30", "02:40", "2026-03-22T01:00Z", "2026-03-23T01:30Z"),
        ("Africa/Casablanca", "22:00", "02:30", "2026-02-15T01:45Z", "2026-02-15T02:00Z"),
        # Samoa had no 2011-12-30: from 23:59:59 on the 29th to 00:00 on the 31st
        ("Pacific/Apia", "09:00", "10:00", "2011-12-29T20:00Z", "2011-12-30T19:00Z"),
        ("Pacific/Apia", "23:00", "22:00", "2011-12-30T08:30Z", "2011-12-30T09:00Z"),
    ],
)
def test_next_opening_depends_only_on_the_local_clock(
    zone: str, opens: str, closes: str, at: str, opening: str
) -> None:
    window = SendingWindow(time.fromisoformat(opens), time.fromisoformat(closes))
    next_opening = window.next_opening(zone, moment(at))
    assert next_opening == moment(opening)
    assert next_opening.tzinfo is UTC


def reference_opening(window: SendingWindow, zone: ZoneInfo, at: datetime) -> datetime:
    """Find the next opening in steps of an hour, or of a second in an hour with a clock change."""
    while True:
        local, local_in_an_hour = at.astimezone(zone), (at + HOUR).astimezone(zone)
        if window.is_open(local.time()):
            return at
        has_clock_change = local.utcoffset() != local_in_an_hour.utcoffset()
        if has_clock_change:
            at = at.replace(microsecond=0) + SECOND
        else:
            time_of_day = datetime.combine(date.min, local.time())
            wait = (datetime.combine(date.min, window.opens) - time_of_day) % DAY
            if wait < HOUR:
                return at + wait
            at += HOUR


def clock_changes(zone: ZoneInfo, year: int) -> list[datetime]:
    """Return the moments at most six hours after each clock change of a zone in a year."""
    moments = [datetime(year, 1, 1, tzinfo=UTC) + 6 * HOUR * n for n in range(4 * 366)]
    return [
        after
        for before, after in pairwise(moments)
        if before.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset()
    ]


times_of_day = st.times().map(lambda each: each.replace(microsecond=0)) | st.builds(
    time, st.integers(0, 23), st.sampled_from([0, 15, 30])
)
windows = st.builds(SendingWindow, times_of_day, times_of_day).filter(
    lambda window: window.opens != window.closes
)
zones = st.sampled_from(sorted(available_timezones())).map(ZoneInfo)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  # `timezones` needs naive limits


@thorough
@given(window=windows, zone=zones, at=moments)
@example(  # a whole day is skipped
    SendingWindow(time(9), time(10)),
    ZoneInfo("Pacific/Apia"),
    datetime(2011, 12, 29, 20, tzinfo=UTC),
)
@example(  # a whole day is skipped
    SendingWindow(time(0, 30), time(1)),
    ZoneInfo("Pacific/Kwajalein"),
    datetime(1993, 8, 20, tzinfo=UTC),
)
@example(  # midnight is skipped
    SendingWindow(time(0), time(0, 0, 1)),
    ZoneInfo("Africa/Cairo"),
    datetime(2026, 4, 23, tzinfo=UTC),
)
@example(  # the first 44.5 minutes of a day are skipped
    SendingWindow(time(0), time(0, 1)),
    ZoneInfo("Africa/Monrovia"),
    datetime(1972, 1, 6, tzinfo=UTC),
)
def test_next_opening_equals_the_reference(
    window: SendingWindow, zone: ZoneInfo, at: datetime
) -> None:
    assert window.next_opening(zone.key, at) == reference_opening(window, zone, at)


def draw_moment_near_clock_change(data: st.DataObject, zone: ZoneInfo, year: int) -> datetime:
    """Draw a moment around a clock change of the year, or around 1 March if there is none."""
    change = data.draw(
        st.sampled_from(clock_changes(zone, year) or [datetime(year, 3, 1, tzinfo=UTC)])
    )
    return change + data.draw(st.timedeltas(-2 * DAY, DAY))


@thorough
@given(window=windows, zone=zones, year=st.integers(1970, 2100), data=st.data())
def test_next_opening_around_a_clock_change_equals_the_reference(
    window: SendingWindow, zone: ZoneInfo, year: int, data: st.DataObject
) -> None:
    at = draw_moment_near_clock_change(data, zone, year)
    assert window.next_opening(zone.key, at) == reference_opening(window, zone, at)


def all_clock_changes(zone: ZoneInfo) -> list[datetime]:
    """Return the moments at most half a day after each clock change of a zone, 1970 to 2037.

    A change that is reversed within 30 days is not found.
    """
    months = [datetime(1970, 1, 1, tzinfo=UTC) + 30 * DAY * n for n in range(68 * 12)]
    changes = []
    for before, after in pairwise(months):
        new_offset = after.astimezone(zone).utcoffset()
        if before.astimezone(zone).utcoffset() != new_offset:
            at, step = after, 30 * DAY
            while (step := step / 2) >= 6 * HOUR:  # search by halves
                if (at - step).astimezone(zone).utcoffset() == new_offset:
                    at -= step
            changes.append(at)
    return changes


def test_next_opening_around_the_clock_changes_of_every_zone_equals_the_reference() -> None:
    rng = random.Random(2026)  # noqa: S311  # no secret
    changes_per_zone = max(1, EXAMPLES // 300)
    any_hour, shortly_after_midnight = range(24 * 4), range(4 * 4)  # in quarters of an hour
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        changes = all_clock_changes(zone) or [datetime(2026, 3, 4, 12, tzinfo=UTC)]
        latest = changes[-2:]  # to summer time and back, in zones that still have it
        for change in [*latest, *rng.choices(changes, k=changes_per_zone - 1)]:
            # half of the windows are at the hours in which most clocks change
            quarters = rng.sample(rng.choice([any_hour, shortly_after_midnight]), 2)
            opens, closes = (time(n // 4, n % 4 * 15) for n in quarters)
            window = SendingWindow(opens, closes)
            at = change - DAY * rng.uniform(0, 1.5)
            assert window.next_opening(name, at) == reference_opening(window, zone, at), (
                name,
                window,
                at,
            )


@thorough
@given(window=windows, zone=zones, at=moments)
def test_next_opening_is_open_and_is_its_own_next_opening(
    window: SendingWindow, zone: ZoneInfo, at: datetime
) -> None:
    opening = window.next_opening(zone.key, at)
    assert opening >= at
    assert window.is_open(opening.astimezone(zone).time())
    assert window.next_opening(zone.key, opening) == opening


@thorough
@given(window=windows, local=st.times())
def test_either_a_window_or_its_complement_is_open(window: SendingWindow, local: time) -> None:
    complement = SendingWindow(window.closes, window.opens)
    assert window.is_open(local) != complement.is_open(local)


def open_intervals(window: SendingWindow, zone: str, start: datetime, end: datetime) -> list[str]:
    """Return the intervals from `start` to `end` in which a window is open.

    They are texts such as `04 12:00-04 18:00`, with days of the month and times in UTC.
    """
    intervals = window.open_intervals(offsets_of(zone, start, end), end)
    return [f"{interval.opens:%d %H:%M}-{interval.closes:%d %H:%M}" for interval in intervals]


@pytest.mark.parametrize(
    ("zone", "opens", "closes", "start", "expected"),
    [
        ("UTC", "09:00", "18:00", "2026-03-04T12:00Z", ["04 12:00-04 18:00", "05 09:00-05 11:00"]),
        ("UTC", "22:00", "06:00", "2026-03-04T12:00Z", ["04 22:00-05 06:00"]),
        ("UTC", "12:00", "11:59", "2026-03-04T12:00Z", ["04 12:00-05 11:00"]),
        ("Asia/Kathmandu", "09:00", "18:00", "2026-03-04T00:00Z", ["04 03:15-04 12:15"]),
        # the clocks skip 02:00-03:00: the window is shorter, opens or closes at the jump, or
        # does not open
        ("Europe/Berlin", "01:30", "04:00", "2026-03-29T00:00Z", ["29 00:30-29 02:00"]),
        ("Europe/Berlin", "02:30", "04:00", "2026-03-29T00:00Z", ["29 01:00-29 02:00"]),
        ("Europe/Berlin", "01:30", "02:30", "2026-03-29T00:00Z", ["29 00:30-29 01:00"]),
        ("Europe/Berlin", "02:15", "02:45", "2026-03-29T00:00Z", []),
        # the clocks show 02:00-03:00 twice: the window is longer, or opens twice
        ("Europe/Berlin", "01:30", "04:00", "2026-10-24T23:00Z", ["24 23:30-25 03:00"]),
        (
            *("Europe/Berlin", "02:15", "02:45", "2026-10-25T00:00Z"),
            ["25 00:15-25 00:45", "25 01:15-25 01:45"],
        ),
        (
            *("Europe/Berlin", "23:00", "02:30", "2026-10-24T20:00Z"),
            ["24 21:00-25 00:30", "25 01:00-25 01:30"],
        ),
        # Samoa had no 2011-12-30: from 23:59:59 on the 29th to 00:00 on the 31st
        ("Pacific/Apia", "22:00", "02:00", "2011-12-30T00:00Z", ["30 08:00-30 12:00"]),
    ],
)
def test_open_intervals_follow_the_local_clock(
    zone: str, opens: str, closes: str, start: str, expected: list[str]
) -> None:
    window = SendingWindow(time.fromisoformat(opens), time.fromisoformat(closes))
    begin = moment(start)
    assert open_intervals(window, zone, begin, begin + 23 * HOUR) == expected


@thorough
@given(window=windows, zone=zones, year=st.integers(1970, 2100), data=st.data())
def test_open_interval_lasts_from_an_opening_to_the_next_opening_of_the_complement(
    window: SendingWindow, zone: ZoneInfo, year: int, data: st.DataObject
) -> None:
    start = draw_moment_near_clock_change(data, zone, year)
    end = start + data.draw(st.timedeltas(SECOND, 5 * DAY))
    complement = SendingWindow(window.closes, window.opens)
    expected = []
    opens = window.next_opening(zone.key, start)
    while opens < end:
        closes = complement.next_opening(zone.key, opens)
        expected.append((opens, min(closes, end)))
        opens = window.next_opening(zone.key, closes)
    assert list(window.open_intervals(offsets_of(zone.key, start, end), end)) == expected


def test_clock_changes_of_a_zone_are_computed_once_for_each_month() -> None:
    start = datetime(2031, 3, 3, 10, 7, tzinfo=UTC)
    change_to_summer_time = datetime(2031, 3, 30, 1, tzinfo=UTC)
    offsets_of("Europe/Berlin", start, start + timedelta(days=50))
    computed_months = _offset_changes_of_month.cache_info().misses
    for minutes in range(100):
        later = start + timedelta(minutes=minutes)
        offsets = offsets_of("Europe/Berlin", later, later + timedelta(days=50))
        assert [at for at, _ in offsets] == [later, change_to_summer_time]
    assert _offset_changes_of_month.cache_info().misses == computed_months
