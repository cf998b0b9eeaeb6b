"""The forecast of a mailing: examples, rules, and a comparison with sending message by message."""

from collections.abc import Iterable
from datetime import UTC, datetime, time, timedelta
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.examples import EXAMPLES, thorough
from tests.factories import DAY, HOUR

from mailer.client.model import known_zones
from mailer.forecast.model import MAX_HORIZON, Forecast, RecipientGroup, Shortfall
from mailer.forecast.model import forecast as forecast_steps
from mailer.mailing.planning import plan
from mailer.mailing.window import SendingWindow

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
BY_DAY = SendingWindow(time(9), time(21))


def forecast(groups: Iterable[RecipientGroup], **arguments: Any) -> Forecast:
    """Run all steps of a forecast and return its result."""
    steps = forecast_steps(groups, **arguments)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Forecast = end.value
            return result


def forecast_mailing(
    *groups: RecipientGroup, lasts: timedelta = 6 * HOUR, **arguments: Any
) -> Forecast:
    """Forecast a mailing that starts at noon, without a sending window by default."""
    defaults = {"start": NOON, "end": NOON + lasts, "window": None, "at": NOON}
    return forecast(groups, **{**defaults, **arguments})


# ---- examples --------------------------------------------------------------------------------


def test_clients_whose_window_opens_after_the_end_are_missed() -> None:
    groups = [RecipientGroup("Europe/Moscow", 48_760), RecipientGroup("Asia/Kamchatka", 1_240)]
    # it is 00:00 in Kamchatka, where the window opens at 21:00 UTC
    result = forecast_mailing(*groups, window=BY_DAY, rate=100)
    assert (result.missed, result.clients, result.reached) == (1_240, 50_000, 48_760)
    assert result.shortfalls == (Shortfall("Asia/Kamchatka", 1_240, "no_window", NOON + 9 * HOUR),)
    assert result.done_at is None
    assert result.until is None


def test_duration_is_the_number_of_clients_divided_by_the_rate() -> None:
    assert forecast_mailing(RecipientGroup("UTC", 7200), rate=2).done_at == NOON + HOUR


def test_without_a_rate_the_mailing_is_done_when_the_last_window_opens() -> None:
    result = forecast_mailing(
        RecipientGroup("UTC", 9), RecipientGroup("America/New_York", 10**9), window=BY_DAY
    )
    assert result.done_at == NOON + 2 * HOUR
    assert result.rate is None


def test_clients_missed_by_the_rate_are_proportional_to_the_groups() -> None:
    groups = [RecipientGroup("UTC", 20_000), RecipientGroup("Europe/Moscow", 10_000)]
    result = forecast_mailing(*groups, lasts=HOUR, rate=5)
    assert result.reached == 18_000
    assert result.shortfalls == (
        Shortfall("UTC", 8_000, "no_time"),
        Shortfall("Europe/Moscow", 4_000, "no_time"),
    )


def test_sending_continues_when_the_window_opens_again() -> None:
    result = forecast_mailing(
        RecipientGroup("UTC", 9 * 3600 + 1800), lasts=3 * DAY, window=BY_DAY, rate=1
    )
    assert result.done_at == NOON + 21 * HOUR + HOUR / 2


def test_clients_missed_after_an_open_window_are_missed_for_lack_of_time() -> None:
    result = forecast_mailing(
        RecipientGroup("UTC", 9 * 3600 + 5), lasts=20 * HOUR, window=BY_DAY, rate=1
    )
    assert result.shortfalls == (Shortfall("UTC", 5, "no_time"),)


def test_clients_due_first_are_reached_first() -> None:
    # both windows are open, Moscow's opened first: London comes after it, while time is left
    groups = [RecipientGroup("Europe/London", 3600), RecipientGroup("Europe/Moscow", 3600)]
    arguments = {"start": NOON - DAY, "window": BY_DAY, "rate": 1}
    result = forecast_mailing(*groups, lasts=1.5 * HOUR, **arguments)
    assert result.shortfalls == (Shortfall("Europe/London", 1800, "no_time"),)


def test_group_due_later_is_reached_later() -> None:
    result = forecast_mailing(
        RecipientGroup("UTC", 600, due_at=NOON + HOUR), RecipientGroup("UTC", 60), rate=1
    )
    assert result.done_at == NOON + HOUR + timedelta(seconds=600)


def test_other_mailings_share_the_rate_equally_until_they_are_done() -> None:
    # at a third of the rate until the first other is done, at half until the second, then alone
    result = forecast_mailing(RecipientGroup("UTC", 1800), others=[600, 1200], rate=3)
    assert result.done_at == NOON + timedelta(seconds=600 + 400 + 200)


def test_other_mailings_continue_while_the_mailing_waits() -> None:
    result = forecast_mailing(RecipientGroup("UTC", 60), start=NOON + HOUR, others=[3600], rate=1)
    assert result.done_at == NOON + HOUR + timedelta(seconds=60)


def test_at_rate_zero_all_clients_are_missed() -> None:
    assert forecast_mailing(RecipientGroup("UTC", 5), rate=0).missed == 5


def test_mailing_without_clients_is_done_at_its_start() -> None:
    assert forecast_mailing(rate=1) == Forecast(0, 1, NOON, 0, ())
    assert forecast_mailing(start=NOON - DAY).done_at == NOON


def test_after_the_end_all_clients_are_missed() -> None:
    result = forecast_mailing(RecipientGroup("UTC", 5), at=NOON + DAY, window=BY_DAY)
    assert result.shortfalls == (Shortfall("UTC", 5, "no_time"),)


def test_clients_beyond_the_horizon_are_still_waiting() -> None:
    result = forecast_mailing(RecipientGroup("UTC", 10_000_000), lasts=99 * DAY, rate=1)
    assert result.until == NOON + MAX_HORIZON
    assert result.reached == MAX_HORIZON.total_seconds()
    assert (result.missed, result.shortfalls, result.done_at) == (0, (), None)
    assert result.waiting == 10_000_000 - result.reached


# ---- rules -----------------------------------------------------------------------------------

ZONES = (
    *("UTC", "Europe/Moscow", "Asia/Kamchatka", "Asia/Kathmandu", "America/New_York"),
    *("Europe/Berlin", "Europe/Paris", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia"),
)


def durations(max_days: int) -> st.SearchStrategy[timedelta]:
    """Return durations up to `max_days`, often of whole quarters of an hour."""
    return st.integers(1, max_days * 96).map(QUARTER.__mul__) | st.timedeltas(
        timedelta(seconds=1), max_days * DAY
    )


starts = st.builds(  # in one year, which includes all changes of the clocks
    lambda day, quarter: datetime(2026, 1, 1, tzinfo=UTC) + day * DAY + quarter * QUARTER,
    st.integers(0, 365),
    st.integers(0, 95),
)
clocks = st.builds(time, st.integers(0, 23), st.sampled_from([0, 15, 30, 45]))
windows = st.tuples(clocks, clocks).filter(lambda pair: pair[0] != pair[1])
rates = st.sampled_from([0.001, 0.01, 0.1, 0.5, 1, 3, 50, 1000]) | st.floats(0.0001, 10_000)


class Case(msgspec.Struct, frozen=True):
    groups: list[RecipientGroup]
    start: datetime
    end: datetime
    window: SendingWindow | None
    at: datetime
    rate: float | None
    others: list[int]

    def forecast(self, **changes: Any) -> Forecast:
        arguments = {name: getattr(self, name) for name in self.__struct_fields__} | changes
        return forecast(arguments.pop("groups"), **arguments)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    start = draw(starts)
    at = start + draw(st.just(timedelta()) | durations(3) | durations(3).map(lambda late: -late))
    dues = st.none() | durations(4).map(lambda later: start + later)
    sizes = st.integers(0, 5) | st.integers(0, 100_000)
    groups = st.lists(st.builds(RecipientGroup, st.sampled_from(ZONES), sizes, dues), max_size=8)
    return Case(
        draw(groups),
        start,
        max(start, at) + draw(durations(4) | st.just(70 * DAY)),
        draw(st.none() | windows.map(lambda pair: SendingWindow(*pair))),
        at,
        draw(st.none() | rates),
        draw(st.lists(st.integers(0, 50_000), max_size=4)),
    )


def missed_by_zone(result: Forecast) -> dict[str, int]:
    missed = dict.fromkeys(ZONES, 0)
    for shortfall in result.shortfalls:
        missed[shortfall.time_zone] += shortfall.clients
    return missed


@thorough
@given(cases())
def test_every_client_is_reached_or_missed_or_waiting(case: Case) -> None:
    result = case.forecast()
    assert result.clients == sum(group.clients for group in case.groups)
    assert result.missed == sum(shortfall.clients for shortfall in result.shortfalls)
    assert min(result.reached, result.missed, result.waiting) >= 0
    assert (result.until is not None) == (result.waiting > 0)
    assert [s.clients for s in result.shortfalls] == sorted(
        (s.clients for s in result.shortfalls), reverse=True
    )
    for zone, missed in missed_by_zone(result).items():
        assert missed <= sum(c.clients for c in case.groups if c.time_zone == zone)
    for shortfall in result.shortfalls:
        assert shortfall.clients > 0
        assert (shortfall.opens_at is not None) == (shortfall.reason == "no_window")


@thorough
@given(cases())
def test_mailing_is_done_between_its_start_and_its_end(case: Case) -> None:
    result = case.forecast()
    assert (result.done_at is not None) == (result.reached == result.clients)
    if result.done_at is not None:
        assert max(case.start, case.at) <= result.done_at <= case.end


@thorough
@given(cases())
def test_clients_whose_window_opens_too_late_are_missed_whatever_the_rate(case: Case) -> None:
    groups = [RecipientGroup(group.time_zone, group.clients) for group in case.groups]
    expected = dict.fromkeys(ZONES, 0)
    for group in groups:
        planned = plan(group.time_zone, case.window, case.start, case.end, case.at)
        if planned.reason == "no_window":
            expected[group.time_zone] += group.clients
    at_once = case.forecast(groups=groups, rate=None)
    assert missed_by_zone(at_once) == expected
    assert {shortfall.reason for shortfall in at_once.shortfalls} <= {"no_window"}
    too_late = [s for s in case.forecast(groups=groups).shortfalls if s.reason == "no_window"]
    assert too_late == list(at_once.shortfalls)
    for shortfall in too_late:
        assert shortfall.opens_at is not None
        assert shortfall.opens_at >= case.end


@thorough
@given(cases(), rates, rates)
def test_higher_rate_never_misses_more_and_is_never_done_later(
    case: Case, one: float, other: float
) -> None:
    slow, fast = (case.forecast(rate=rate) for rate in sorted((one, other)))
    assert slow.reached <= fast.reached <= case.forecast(rate=None).reached
    assert slow.missed >= fast.missed
    if slow.done_at is not None:
        assert fast.done_at is not None
        assert fast.done_at <= slow.done_at + timedelta(milliseconds=1)


@thorough
@given(cases(), durations(4))
def test_later_end_never_misses_more(case: Case, later: timedelta) -> None:
    assert case.forecast(end=case.end + later).missed <= case.forecast().missed


@thorough
@given(cases(), st.integers(1, 10_000))
def test_another_mailing_never_improves_the_forecast(case: Case, waiting: int) -> None:
    alone, with_other = case.forecast(), case.forecast(others=[*case.others, waiting])
    assert with_other.reached <= alone.reached
    if with_other.done_at is not None:
        assert alone.done_at is not None
        assert alone.done_at <= with_other.done_at + timedelta(milliseconds=1)


# ---- message by message ----------------------------------------------------------------------


def simulate_missed(case: Case, rate: float) -> dict[str, int]:
    """Simulate sending one message after the other; return the missed clients by time zone."""
    unsent = {group.time_zone: group.clients for group in case.groups}
    sizes = dict(unsent)
    due: dict[str, datetime] = {}
    moment = max(case.start, case.at)
    while moment < case.end:
        for zone in unsent:
            is_open = case.window is None or case.window.is_open_in(zone, moment)
            if not is_open:
                due.pop(zone, None)
            elif zone not in due:
                since = max(case.start, case.at)
                due[zone] = since if case.window is None else _opened(case.window, zone, moment)
        waiting = [zone for zone in due if unsent[zone]]
        if waiting:
            first = min(due[zone] for zone in waiting)
            due_first = [zone for zone in waiting if due[zone] == first]
            unsent[max(due_first, key=lambda zone: unsent[zone] / sizes[zone])] -= 1
        moment += timedelta(seconds=1 / rate)
    return unsent


def _opened(window: SendingWindow, zone: str, moment: datetime) -> datetime:
    """Return the quarter of an hour at which the open window has opened."""
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
def test_forecast_agrees_with_sending_message_by_message(
    start: datetime,
    sizes: list[int],
    pair: tuple[time, time] | None,
    lasts: timedelta,
) -> None:
    groups = [RecipientGroup(zone, size) for zone, size in zip(ZONES, sizes, strict=False)]
    window = pair and SendingWindow(*pair)
    case = Case(groups, start - 2 * DAY, start + lasts, window, start, 1 / 300, [])
    expected = simulate_missed(case, 1 / 300)
    result = missed_by_zone(case.forecast())
    for zone, missed in expected.items():  # a few messages at the edges of windows may differ
        assert abs(result[zone] - missed) <= 3 * (1 + lasts / DAY), (zone, expected)


def test_forecast_of_many_zones_runs_in_many_short_steps() -> None:
    groups = [RecipientGroup(zone, 1_000) for zone in sorted(known_zones())]
    end = NOON + 30 * DAY
    steps = sum(
        1 for _ in forecast_steps(groups, start=NOON, end=end, window=BY_DAY, at=NOON, rate=0.1)
    )
    assert steps > 2 * len(groups)
