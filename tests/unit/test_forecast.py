"""The forecast of a mailing: examples, rules, and a comparison with sending message by message."""

from collections.abc import Generator, Iterable
from datetime import UTC, datetime, time, timedelta
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.examples import EXAMPLES, thorough
from tests.factories import DAY, HOUR

from mailer.client.model import known_zones
from mailer.forecast.mailing_plan import MAX_HORIZON
from mailer.forecast.model import Forecast, RecipientGroup, Shortfall
from mailer.forecast.model import forecast as forecast_steps
from mailer.forecast.service import without_capped
from mailer.forecast.throughput_simulation import Cohort, Lane, SendSlot, share_rates
from mailer.forecast.tiers import (
    EQUAL_PACE,
    Capacity,
    GatewayThroughput,
    OtherMailing,
    Pace,
    by_name,
)
from mailer.mailing.audience_overlap import AudienceOverlap
from mailer.mailing.planning import plan
from mailer.mailing.window import SendingWindow

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
DAYTIME = SendingWindow(time(9), time(21))
"""The sending window of most examples. In UTC it is open at noon, for nine more hours."""


ONE_GATEWAY = frozenset({"gateway"})


def forecast(
    groups: Iterable[RecipientGroup],
    *,
    rate: float | None = None,
    messages_of_others: Iterable[float] = (),
    others: Iterable[OtherMailing] = (),
    pace: Pace = EQUAL_PACE,
    **arguments: Any,
) -> Forecast:
    """Run all steps of a forecast with one gateway and return its result.

    `rate` is that of the gateway; None: it is not known.
    """
    gateways = by_name(GatewayThroughput("gateway", rate))
    equal = map(OtherMailing, messages_of_others)
    capacity = Capacity(gateways, {ONE_GATEWAY: [*equal, *others]}, pace)
    sendable = [replace(group, tier=ONE_GATEWAY) for group in groups]
    return run(forecast_steps(sendable, capacity=capacity, **arguments))


def run(steps: Generator[None, None, Forecast]) -> Forecast:
    """Run all steps of a forecast and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Forecast = end.value
            return result


def forecast_mailing(
    *groups: RecipientGroup, lasts: timedelta = 6 * HOUR, **arguments: Any
) -> Forecast:
    """Return the forecast, made at noon, of a mailing that starts then.

    By default, it lasts six hours and has no sending window.
    """
    defaults = {"start": NOON, "end": NOON + lasts, "window": None, "at": NOON}
    return forecast(groups, **{**defaults, **arguments})


# ---- examples --------------------------------------------------------------------------------


def test_clients_whose_window_opens_after_the_end_are_missed() -> None:
    # it is midnight in Kamchatka; its window opens nine hours later, three hours after the end
    groups = [RecipientGroup("Europe/Moscow", 48_760), RecipientGroup("Asia/Kamchatka", 1_240)]
    result = forecast_mailing(*groups, window=DAYTIME, rate=100)
    assert (result.missed, result.clients, result.reached) == (1_240, 50_000, 48_760)
    assert result.shortfalls == (Shortfall("Asia/Kamchatka", 1_240, "no_window", NOON + 9 * HOUR),)
    assert result.done_at is None
    assert result.until is None


def test_duration_is_the_number_of_clients_divided_by_the_rate() -> None:
    assert forecast_mailing(RecipientGroup("UTC", 7200), rate=2).done_at == NOON + HOUR


def test_without_a_rate_the_mailing_is_done_when_the_last_window_opens() -> None:
    # it is 07:00 in New York, where the window opens two hours later
    result = forecast_mailing(
        RecipientGroup("UTC", 9), RecipientGroup("America/New_York", 10**9), window=DAYTIME
    )
    assert result.done_at == NOON + 2 * HOUR
    assert result.rate is None


def test_clients_missed_by_the_rate_are_proportional_to_the_groups() -> None:
    groups = [RecipientGroup("UTC", 20_000), RecipientGroup("Europe/Moscow", 10_000)]
    result = forecast_mailing(*groups, lasts=HOUR, rate=5)
    assert result.reached == 5 * 3600  # of 30,000, so 40 % of each group are missed
    assert result.shortfalls == (
        Shortfall("UTC", 8_000, "no_time"),
        Shortfall("Europe/Moscow", 4_000, "no_time"),
    )


def test_sending_continues_when_the_window_opens_again() -> None:
    # at one message a second, half an hour is left to send when the window closes at 21:00
    clients = 9 * 3600 + 1800
    result = forecast_mailing(RecipientGroup("UTC", clients), lasts=3 * DAY, window=DAYTIME, rate=1)
    next_opening = NOON + 21 * HOUR
    assert result.done_at == next_opening + HOUR / 2


def test_clients_missed_after_an_open_window_are_missed_for_lack_of_time() -> None:
    # five clients are left when the window closes at 21:00; the mailing ends before it opens again
    clients = 9 * 3600 + 5
    result = forecast_mailing(
        RecipientGroup("UTC", clients), lasts=20 * HOUR, window=DAYTIME, rate=1
    )
    assert result.shortfalls == (Shortfall("UTC", 5, "no_time"),)


def test_clients_due_first_are_reached_first() -> None:
    # Both windows are open, and Moscow's opened first. At one message a second, its 3,600 clients
    # need one hour; half an hour is left for London.
    groups = [RecipientGroup("Europe/London", 3600), RecipientGroup("Europe/Moscow", 3600)]
    result = forecast_mailing(*groups, start=NOON - DAY, lasts=1.5 * HOUR, window=DAYTIME, rate=1)
    assert result.shortfalls == (Shortfall("Europe/London", 1800, "no_time"),)


def test_group_due_later_is_reached_later() -> None:
    result = forecast_mailing(
        RecipientGroup("UTC", 600, due_at=NOON + HOUR), RecipientGroup("UTC", 60), rate=1
    )
    assert result.done_at == NOON + HOUR + timedelta(seconds=600)


def test_other_mailings_share_the_rate_equally_until_they_are_done() -> None:
    result = forecast_mailing(RecipientGroup("UTC", 1800), messages_of_others=[600, 1200], rate=3)
    # 600 messages at one a second, until the first other mailing is done; then 600 at 1.5 a second,
    # until the second is done; then 600 at 3 a second
    assert result.done_at == NOON + timedelta(seconds=600 + 400 + 200)


def test_other_mailings_continue_while_the_mailing_waits() -> None:
    # the other mailing is done when this one starts, one hour later
    result = forecast_mailing(
        RecipientGroup("UTC", 60), start=NOON + HOUR, messages_of_others=[3600], rate=1
    )
    assert result.done_at == NOON + HOUR + timedelta(seconds=60)


def test_at_rate_zero_all_clients_are_missed() -> None:
    assert forecast_mailing(RecipientGroup("UTC", 5), rate=0).missed == 5


def test_mailing_without_clients_is_done_at_its_start() -> None:
    assert forecast_mailing(rate=1) == Forecast(
        clients=0, rate=1, done_at=NOON, missed=0, shortfalls=()
    )
    started_before = forecast_mailing(start=NOON - DAY)
    assert started_before.done_at == NOON


def test_after_the_end_all_clients_are_missed() -> None:
    result = forecast_mailing(RecipientGroup("UTC", 5), at=NOON + DAY, window=DAYTIME)
    assert result.shortfalls == (Shortfall("UTC", 5, "no_time"),)


def test_clients_beyond_the_horizon_are_still_waiting() -> None:
    result = forecast_mailing(RecipientGroup("UTC", 10_000_000), lasts=99 * DAY, rate=1)
    assert result.until == NOON + MAX_HORIZON
    assert result.reached == MAX_HORIZON.total_seconds()  # one client a second
    assert (result.missed, result.shortfalls, result.done_at) == (0, (), None)
    assert result.waiting == 10_000_000 - result.reached


# ---- rules -----------------------------------------------------------------------------------
# Each rule holds for any mailing; Hypothesis generates the mailings.

ZONES = (
    *("UTC", "Europe/Moscow", "Asia/Kamchatka", "Asia/Kathmandu", "America/New_York"),
    *("Europe/Berlin", "Europe/Paris", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia"),
)


def durations(max_days: int) -> st.SearchStrategy[timedelta]:
    """Generate durations up to `max_days`, often of whole quarters of an hour."""
    return st.integers(1, max_days * 96).map(QUARTER.__mul__) | st.timedeltas(
        timedelta(seconds=1), max_days * DAY
    )


starts = st.builds(  # in one year, which includes all changes of the clocks
    lambda day, quarter: datetime(2026, 1, 1, tzinfo=UTC) + day * DAY + quarter * QUARTER,
    st.integers(0, 365),
    st.integers(0, 95),
)
quarter_times = st.builds(time, st.integers(0, 23), st.sampled_from([0, 15, 30, 45]))
windows = (
    st.tuples(quarter_times, quarter_times)
    .filter(lambda bounds: bounds[0] != bounds[1])
    .map(lambda bounds: SendingWindow(*bounds))
)
rates = st.sampled_from([0.001, 0.01, 0.1, 0.5, 1, 3, 50, 1000]) | st.floats(0.0001, 10_000)


class Case(msgspec.Struct, frozen=True):
    """The arguments of a forecast, as in `mailer.forecast.model.forecast`."""

    groups: list[RecipientGroup]
    start: datetime
    end: datetime
    window: SendingWindow | None
    at: datetime
    rate: float | None
    messages_of_others: list[int]

    def forecast(self, **changes: Any) -> Forecast:
        """Return the forecast with these arguments; `changes` replace some of them."""
        arguments = {name: getattr(self, name) for name in self.__struct_fields__} | changes
        return forecast(arguments.pop("groups"), **arguments)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Generate a forecast made before, at or after the start of its mailing."""
    start = draw(starts)
    at = start + draw(
        st.just(timedelta()) | durations(3) | durations(3).map(lambda before: -before)
    )
    due_times = st.none() | durations(4).map(lambda after_start: start + after_start)
    sizes = st.integers(0, 5) | st.integers(0, 100_000)
    group = st.builds(RecipientGroup, st.sampled_from(ZONES), sizes, due_times)
    return Case(
        groups=draw(st.lists(group, max_size=8)),
        start=start,
        # 70 days are beyond the horizon
        end=max(start, at) + draw(durations(4) | st.just(70 * DAY)),
        window=draw(st.none() | windows),
        at=at,
        rate=draw(st.none() | rates),
        messages_of_others=draw(st.lists(st.integers(0, 50_000), max_size=4)),
    )


def missed_by_zone(result: Forecast) -> dict[str, int]:
    """Return the missed clients of each of `ZONES`, also where there are none."""
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
    for zone, missed in missed_by_zone(result).items():
        assert missed <= sum(group.clients for group in case.groups if group.time_zone == zone)


@thorough
@given(cases())
def test_shortfalls_are_not_empty_and_ordered_by_size(case: Case) -> None:
    result = case.forecast()
    sizes = [shortfall.clients for shortfall in result.shortfalls]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size > 0 for size in sizes)
    for shortfall in result.shortfalls:
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
    # what enqueueing decides for a client of each time zone
    expected = dict.fromkeys(ZONES, 0)
    for group in groups:
        planned = plan(group.time_zone, case.window, case.start, case.end, case.at)
        if planned.reason == "no_window":
            expected[group.time_zone] += round(group.clients)

    without_rate = case.forecast(groups=groups, rate=None).shortfalls
    with_rate = case.forecast(groups=groups).shortfalls

    assert missed_by_zone(case.forecast(groups=groups, rate=None)) == expected
    assert {shortfall.reason for shortfall in without_rate} <= {"no_window"}
    too_late = [shortfall for shortfall in with_rate if shortfall.reason == "no_window"]
    assert too_late == list(without_rate)
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
    alone = case.forecast()
    with_other = case.forecast(messages_of_others=[*case.messages_of_others, waiting])
    assert with_other.reached <= alone.reached
    if with_other.done_at is not None:
        assert alone.done_at is not None
        assert alone.done_at <= with_other.done_at + timedelta(milliseconds=1)


# ---- message by message ----------------------------------------------------------------------


def simulate_missed(case: Case, rate: float) -> dict[str, int]:
    """Simulate sending one message after the other; return the missed clients by time zone.

    The next message goes to the time zone whose messages were due first. Of several such zones, it
    goes to the one with the largest part of its messages unsent.
    """
    unsent = {group.time_zone: round(group.clients) for group in case.groups}
    sizes = dict(unsent)
    due_since: dict[str, datetime] = {}  # of the time zones whose window is open
    first_moment = max(case.start, case.at)
    moment = first_moment
    while moment < case.end:
        for zone in unsent:
            if case.window is None:
                due_since[zone] = first_moment
            elif not case.window.is_open_in(zone, moment):
                due_since.pop(zone, None)
            elif zone not in due_since:
                due_since[zone] = _opened(case.window, zone, moment)
        waiting = [zone for zone in due_since if unsent[zone]]
        if waiting:
            earliest = min(due_since[zone] for zone in waiting)
            due_first = [zone for zone in waiting if due_since[zone] == earliest]
            unsent[max(due_first, key=lambda zone: unsent[zone] / sizes[zone])] -= 1
        moment += timedelta(seconds=1 / rate)
    return unsent


def _opened(window: SendingWindow, zone: str, moment: datetime) -> datetime:
    """Return when the window, which is open at `moment`, has opened: at a quarter of an hour."""
    quarter = moment.replace(minute=moment.minute // 15 * 15, second=0, microsecond=0)
    while window.is_open_in(zone, quarter - QUARTER):
        quarter -= QUARTER
    return quarter


@settings(thorough, max_examples=max(20, EXAMPLES // 10))
@given(
    start=starts,
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    window=st.none() | windows,
    lasts=st.integers(1, 200).map(QUARTER.__mul__),
)
def test_forecast_agrees_with_sending_message_by_message(
    start: datetime,
    sizes: list[int],
    window: SendingWindow | None,
    lasts: timedelta,
) -> None:
    rate = 1 / 300  # one message in five minutes, so that some clients are missed
    case = Case(
        groups=[RecipientGroup(zone, size) for zone, size in zip(ZONES, sizes, strict=False)],
        start=start - 2 * DAY,
        end=start + lasts,
        window=window,
        at=start,
        rate=rate,
        messages_of_others=[],
    )
    expected = simulate_missed(case, rate)
    result = missed_by_zone(case.forecast())
    for zone, missed in expected.items():  # a few messages at the edges of windows may differ
        assert abs(result[zone] - missed) <= 3 * (1 + lasts / DAY), (zone, expected)


def test_forecast_of_many_zones_runs_in_many_short_steps() -> None:
    groups = [RecipientGroup(zone, 1_000, tier=ONE_GATEWAY) for zone in sorted(known_zones())]
    capacity = Capacity(by_name(GatewayThroughput("gateway", 0.1)), {})
    steps = forecast_steps(
        groups, start=NOON, end=NOON + 30 * DAY, window=DAYTIME, at=NOON, capacity=capacity
    )
    assert len(list(steps)) > 2 * len(groups)


# ---- priority and rate -----------------------------------------------------------------------


def test_mailings_share_the_rate_by_their_priorities() -> None:
    high, low = Pace(16), Pace(1)
    fast = forecast_mailing(
        RecipientGroup("UTC", 1600), others=[OtherMailing(9_000, low)], pace=high, rate=17
    )
    slow = forecast_mailing(
        RecipientGroup("UTC", 100), others=[OtherMailing(9_000, high)], pace=low, rate=17
    )
    assert fast.done_at == slow.done_at == NOON + timedelta(seconds=100)


def test_mailing_is_not_faster_than_its_own_rate() -> None:
    result = forecast_mailing(RecipientGroup("UTC", 100), pace=Pace(rate=0.5), rate=1_000)
    assert result.done_at == NOON + timedelta(seconds=200)


def test_clients_are_missed_if_the_own_rate_is_too_low() -> None:
    result = forecast_mailing(
        RecipientGroup("UTC", 5_000), pace=Pace(rate=1), rate=1_000, lasts=HOUR
    )
    assert result.missed == 1_400
    assert result.shortfalls == (Shortfall("UTC", 1_400, "no_time"),)


def test_own_rate_counts_although_that_of_the_gateway_is_not_known() -> None:
    result = forecast_mailing(RecipientGroup("UTC", 100), pace=Pace(rate=2), rate=None)
    assert result.done_at == NOON + timedelta(seconds=50)
    assert result.rate == 2


@given(
    clients=st.integers(1, 5_000),
    others=st.lists(
        st.builds(
            OtherMailing,
            st.integers(0, 5_000),
            st.builds(Pace, st.sampled_from([1, 4, 16]), st.none() | st.floats(0.01, 50)),
        ),
        max_size=5,
    ),
    pace=st.builds(Pace, st.sampled_from([1, 4, 16]), st.none() | st.floats(0.01, 50)),
)
def test_gateway_is_used_fully_unless_all_rates_are_reached(
    clients: int, others: list[OtherMailing], pace: Pace
) -> None:
    capacity = Capacity(by_name(GatewayThroughput("gateway", 20)), {ONE_GATEWAY: others}, pace)
    lane = Lane(ONE_GATEWAY, capacity)
    lane.own.open_slot(Cohort(iter(()), clients, ONE_GATEWAY), SendSlot(0, 0, 1))
    rates = share_rates([lane], capacity)
    used = sum(rate * sender.mailings for sender, rate in rates)
    assert used <= 20 * (1 + 1e-9)
    assert all(sender.pace.rate is None or rate <= sender.pace.rate for sender, rate in rates)
    are_all_at_their_rate = all(rate == sender.pace.rate for sender, rate in rates)
    assert are_all_at_their_rate or used >= 20 * (1 - 1e-9)


def test_clients_at_the_cap_are_taken_from_those_who_would_be_reached() -> None:
    expected = Forecast(clients=1_000, rate=1.0, done_at=None, missed=600, shortfalls=())
    overlap = AudienceOverlap(clients=1_000, contacted=900, at_cap=900, is_estimate=False)
    found = without_capped(expected, overlap)
    assert found is not None
    assert (found.clients, found.at_cap, found.reached) == (600, 400, 0)
