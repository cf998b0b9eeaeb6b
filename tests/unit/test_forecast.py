"""What is to be expected of a mailing: examples by hand, rules, and message by message."""

from collections.abc import Iterable
from datetime import UTC, datetime, time, timedelta
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.examples import EXAMPLES, thorough

from mailer.client.model import known_zones
from mailer.mailing.audience import plan
from mailer.mailing.forecast import HORIZON, Crowd, Forecast, Shortfall
from mailer.mailing.forecast import forecast as steps_of
from mailer.mailing.window import Window

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
QUARTER = timedelta(minutes=15)
DAY = timedelta(days=1)
BY_DAY = Window(time(9), time(21))


def forecast(crowds: Iterable[Crowd], **given: Any) -> Forecast:
    """Return what the steps of a forecast lead to."""
    steps = steps_of(crowds, **given)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Forecast = end.value
            return found


def expect(*crowds: Crowd, lasts: timedelta = 6 * HOUR, **given: Any) -> Forecast:
    plan = {"start": NOON, "end": NOON + lasts, "window": None, "at": NOON}
    return forecast(crowds, **{**plan, **given})


# ---- examples --------------------------------------------------------------------------------


def test_who_wakes_after_the_end_is_missed() -> None:
    crowds = [Crowd("Europe/Moscow", 48_760), Crowd("Asia/Kamchatka", 1_240)]
    found = expect(*crowds, window=BY_DAY, rate=100)  # 00:00 in Kamchatka, which wakes at 21:00 UTC
    assert (found.missed, found.clients, found.reached) == (1_240, 50_000, 48_760)
    assert found.shortfalls == (Shortfall("Asia/Kamchatka", 1_240, "no_window", NOON + 9 * HOUR),)
    assert found.done_at is None
    assert found.until is None


def test_it_takes_as_long_as_the_rate_says() -> None:
    assert expect(Crowd("UTC", 7200), rate=2).done_at == NOON + HOUR


def test_without_a_rate_it_is_done_when_the_last_window_opens() -> None:
    found = expect(Crowd("UTC", 9), Crowd("America/New_York", 10**9), window=BY_DAY)
    assert found.done_at == NOON + 2 * HOUR
    assert found.rate is None


def test_what_comes_too_late_for_the_rate_is_missed_in_proportion() -> None:
    crowds = [Crowd("UTC", 20_000), Crowd("Europe/Moscow", 10_000)]
    found = expect(*crowds, lasts=HOUR, rate=5)
    assert found.reached == 18_000
    assert found.shortfalls == (
        Shortfall("UTC", 8_000, "no_time"),
        Shortfall("Europe/Moscow", 4_000, "no_time"),
    )


def test_it_goes_on_when_the_window_opens_again() -> None:
    found = expect(Crowd("UTC", 9 * 3600 + 1800), lasts=3 * DAY, window=BY_DAY, rate=1)
    assert found.done_at == NOON + 21 * HOUR + HOUR / 2


def test_a_night_at_the_end_is_no_time_for_who_had_a_day() -> None:
    found = expect(Crowd("UTC", 9 * 3600 + 5), lasts=20 * HOUR, window=BY_DAY, rate=1)
    assert found.shortfalls == (Shortfall("UTC", 5, "no_time"),)


def test_who_was_due_first_goes_first() -> None:
    # both are awake, Moscow for longer: London is reached after it, as far as there is time
    crowds = [Crowd("Europe/London", 3600), Crowd("Europe/Moscow", 3600)]
    given = {"start": NOON - DAY, "window": BY_DAY, "rate": 1}
    found = expect(*crowds, lasts=1.5 * HOUR, **given)
    assert found.shortfalls == (Shortfall("Europe/London", 1800, "no_time"),)


def test_who_is_due_later_waits_for_it() -> None:
    found = expect(Crowd("UTC", 600, due_at=NOON + HOUR), Crowd("UTC", 60), rate=1)
    assert found.done_at == NOON + HOUR + timedelta(seconds=600)


def test_other_mailings_take_equal_parts_until_they_run_empty() -> None:
    # 600 each by a third of the rate, then 600 and 1800 by half of it, then 600 at all of it
    found = expect(Crowd("UTC", 1800), others=[600, 1200], rate=3)
    assert found.done_at == NOON + timedelta(seconds=600 + 400 + 200)


def test_others_go_on_while_it_waits() -> None:
    found = expect(Crowd("UTC", 60), start=NOON + HOUR, others=[3600], rate=1)
    assert found.done_at == NOON + HOUR + timedelta(seconds=60)


def test_at_no_rate_nobody_is_reached() -> None:
    assert expect(Crowd("UTC", 5), rate=0).missed == 5


def test_nobody_is_reached_as_soon_as_it_starts() -> None:
    assert expect(rate=1) == Forecast(0, 1, NOON, 0, ())
    assert expect(start=NOON - DAY).done_at == NOON


def test_after_its_end_nobody_is_reached() -> None:
    found = expect(Crowd("UTC", 5), at=NOON + DAY, window=BY_DAY)
    assert found.shortfalls == (Shortfall("UTC", 5, "no_time"),)


def test_what_takes_longer_than_is_looked_is_not_known() -> None:
    found = expect(Crowd("UTC", 10_000_000), lasts=99 * DAY, rate=1)
    assert found.until == NOON + HORIZON
    assert found.reached == HORIZON.total_seconds()
    assert (found.missed, found.shortfalls, found.done_at) == (0, (), None)
    assert found.waiting == 10_000_000 - found.reached


# ---- rules -----------------------------------------------------------------------------------

ZONES = (
    *("UTC", "Europe/Moscow", "Asia/Kamchatka", "Asia/Kathmandu", "America/New_York"),
    *("Europe/Berlin", "Europe/Paris", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia"),
)


def moments(most: int) -> st.SearchStrategy[timedelta]:
    """Return times up to so many days, often of whole quarters of an hour."""
    return st.integers(1, most * 96).map(QUARTER.__mul__) | st.timedeltas(
        timedelta(seconds=1), most * DAY
    )


starts = st.builds(  # a year has all the jumps of the clocks
    lambda day, quarter: datetime(2026, 1, 1, tzinfo=UTC) + day * DAY + quarter * QUARTER,
    st.integers(0, 365),
    st.integers(0, 95),
)
clocks = st.builds(time, st.integers(0, 23), st.sampled_from([0, 15, 30, 45]))
windows = st.tuples(clocks, clocks).filter(lambda pair: pair[0] != pair[1])
rates = st.sampled_from([0.001, 0.01, 0.1, 0.5, 1, 3, 50, 1000]) | st.floats(0.0001, 10_000)


class Case(msgspec.Struct, frozen=True):
    crowds: list[Crowd]
    start: datetime
    end: datetime
    window: Window | None
    at: datetime
    rate: float | None
    others: list[int]

    def forecast(self, **changes: Any) -> Forecast:
        given = {name: getattr(self, name) for name in self.__struct_fields__} | changes
        return forecast(given.pop("crowds"), **given)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    start = draw(starts)
    at = start + draw(st.just(timedelta()) | moments(3) | moments(3).map(lambda late: -late))
    dues = st.none() | moments(4).map(lambda later: start + later)
    sizes = st.integers(0, 5) | st.integers(0, 100_000)
    crowds = st.lists(st.builds(Crowd, st.sampled_from(ZONES), sizes, dues), max_size=8)
    return Case(
        draw(crowds),
        start,
        max(start, at) + draw(moments(4) | st.just(70 * DAY)),
        draw(st.none() | windows.map(lambda pair: Window(*pair))),
        at,
        draw(st.none() | rates),
        draw(st.lists(st.integers(0, 50_000), max_size=4)),
    )


def by_zone(found: Forecast) -> dict[str, int]:
    missed = dict.fromkeys(ZONES, 0)
    for shortfall in found.shortfalls:
        missed[shortfall.time_zone] += shortfall.clients
    return missed


@thorough
@given(cases())
def test_everybody_is_reached_or_missed_or_waits(case: Case) -> None:
    found = case.forecast()
    assert found.clients == sum(crowd.clients for crowd in case.crowds)
    assert found.missed == sum(shortfall.clients for shortfall in found.shortfalls)
    assert min(found.reached, found.missed, found.waiting) >= 0
    assert (found.until is not None) == (found.waiting > 0)
    assert [s.clients for s in found.shortfalls] == sorted(
        (s.clients for s in found.shortfalls), reverse=True
    )
    for zone, missed in by_zone(found).items():
        assert missed <= sum(c.clients for c in case.crowds if c.time_zone == zone)
    for shortfall in found.shortfalls:
        assert shortfall.clients > 0
        assert (shortfall.opens_at is not None) == (shortfall.reason == "no_window")


@thorough
@given(cases())
def test_it_is_done_between_its_start_and_its_end(case: Case) -> None:
    found = case.forecast()
    assert (found.done_at is not None) == (found.reached == found.clients)
    if found.done_at is not None:
        assert max(case.start, case.at) <= found.done_at <= case.end


@thorough
@given(cases())
def test_at_any_rate_those_are_missed_whose_window_opens_too_late(case: Case) -> None:
    crowds = [Crowd(crowd.time_zone, crowd.clients) for crowd in case.crowds]
    expected = dict.fromkeys(ZONES, 0)
    for crowd in crowds:
        planned = plan(crowd.time_zone, case.window, case.start, case.end, case.at)
        if planned.reason == "no_window":
            expected[crowd.time_zone] += crowd.clients
    at_once = case.forecast(crowds=crowds, rate=None)
    assert by_zone(at_once) == expected
    assert {shortfall.reason for shortfall in at_once.shortfalls} <= {"no_window"}
    too_late = [s for s in case.forecast(crowds=crowds).shortfalls if s.reason == "no_window"]
    assert too_late == list(at_once.shortfalls)
    for shortfall in too_late:
        assert shortfall.opens_at is not None
        assert shortfall.opens_at >= case.end


@thorough
@given(cases(), rates, rates)
def test_a_higher_rate_never_misses_more_nor_is_done_later(
    case: Case, one: float, other: float
) -> None:
    slow, fast = (case.forecast(rate=rate) for rate in sorted((one, other)))
    assert slow.reached <= fast.reached <= case.forecast(rate=None).reached
    assert slow.missed >= fast.missed
    if slow.done_at is not None:
        assert fast.done_at is not None
        assert fast.done_at <= slow.done_at + timedelta(milliseconds=1)


@thorough
@given(cases(), moments(4))
def test_a_later_end_never_misses_more(case: Case, later: timedelta) -> None:
    assert case.forecast(end=case.end + later).missed <= case.forecast().missed


@thorough
@given(cases(), st.integers(1, 10_000))
def test_another_mailing_never_helps(case: Case, waiting: int) -> None:
    alone, with_other = case.forecast(), case.forecast(others=[*case.others, waiting])
    assert with_other.reached <= alone.reached
    if with_other.done_at is not None:
        assert alone.done_at is not None
        assert alone.done_at <= with_other.done_at + timedelta(milliseconds=1)


# ---- message by message ----------------------------------------------------------------------


def missed_one_by_one(case: Case, rate: float) -> dict[str, int]:
    """Send one message after the other, as the dispatcher would."""
    left = {crowd.time_zone: crowd.clients for crowd in case.crowds}
    sizes = dict(left)
    due: dict[str, datetime] = {}
    moment = max(case.start, case.at)
    while moment < case.end:
        for zone in left:
            is_open = case.window is None or case.window.is_open_in(zone, moment)
            if not is_open:
                due.pop(zone, None)
            elif zone not in due:
                since = max(case.start, case.at)
                due[zone] = since if case.window is None else _opened(case.window, zone, moment)
        waiting = [zone for zone in due if left[zone]]
        if waiting:
            first = min(due[zone] for zone in waiting)
            together = [zone for zone in waiting if due[zone] == first]
            left[max(together, key=lambda zone: left[zone] / sizes[zone])] -= 1
        moment += timedelta(seconds=1 / rate)
    return left


def _opened(window: Window, zone: str, moment: datetime) -> datetime:
    """Return the quarter of an hour in which a window that is open has opened."""
    quarter = moment.replace(minute=moment.minute // 15 * 15, second=0, microsecond=0)
    while window.is_open_in(zone, quarter - QUARTER):
        quarter -= QUARTER
    return quarter


@settings(thorough, max_examples=max(20, EXAMPLES // 10))
@given(
    start=starts,
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    pair=st.none() | windows,
    lasts=st.integers(1, 200).map(QUARTER.__mul__),
)
def test_it_flows_as_messages_go(
    start: datetime,
    sizes: list[int],
    pair: tuple[time, time] | None,
    lasts: timedelta,
) -> None:
    crowds = [Crowd(zone, size) for zone, size in zip(ZONES, sizes, strict=False)]
    window = pair and Window(*pair)
    case = Case(crowds, start - 2 * DAY, start + lasts, window, start, 1 / 300, [])
    expected = missed_one_by_one(case, 1 / 300)
    found = by_zone(case.forecast())
    for zone, missed in expected.items():  # a message may go in the last of a window, or begin it
        assert abs(found[zone] - missed) <= 3 * (1 + lasts / DAY), (zone, expected)


def test_a_forecast_of_many_zones_takes_many_short_steps() -> None:
    crowds = [Crowd(zone, 1_000) for zone in sorted(known_zones())]
    end = NOON + 30 * DAY
    steps = sum(1 for _ in steps_of(crowds, start=NOON, end=end, window=BY_DAY, at=NOON, rate=0.1))
    assert steps > 2 * len(crowds)
