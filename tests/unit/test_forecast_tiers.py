"""Forecasts of mailings whose messages go through several tiers of gateways."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough
from tests.unit.test_forecast import forecast_mailing, run

from mailer.forecast.model import Forecast, RecipientGroup, Shortfall, forecast
from mailer.forecast.routing import Routing
from mailer.forecast.tiers import (
    EMPTY_TIER,
    EQUAL_PACE,
    Capacity,
    GatewayThroughput,
    OtherMailing,
    Pace,
    Tier,
    by_name,
    of_workers,
    tier_of,
)
from mailer.mailing.window import SendingWindow

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
A, B = frozenset({"a"}), frozenset({"b"})
BOTH = A | B
TWO_GATEWAYS = (GatewayThroughput("a", 10), GatewayThroughput("b", 10))


def forecast_tiers(
    clients: Mapping[Tier, float],
    *gateways: GatewayThroughput,
    others: Mapping[Tier, Sequence[float]] | None = None,
    lasts: timedelta = timedelta(hours=6),
    pace: Pace = EQUAL_PACE,
    **arguments: Any,
) -> Forecast:
    """Return the forecast of a mailing that starts at noon, by the clients of each tier."""
    groups = [RecipientGroup("UTC", count, tier=tier) for tier, count in clients.items()]
    of_others = {
        tier: [OtherMailing(messages) for messages in of_tier]
        for tier, of_tier in (others or {}).items()
    }
    capacity = Capacity(by_name(*(gateways or TWO_GATEWAYS)), of_others, pace)
    defaults = {"start": NOON, "end": NOON + lasts, "window": None, "at": NOON}
    return run(forecast(groups, capacity=capacity, **{**defaults, **arguments}))


def seconds(result: Forecast) -> float:
    """Return the seconds until a mailing is done."""
    assert result.done_at is not None
    return (result.done_at - NOON).total_seconds()


# ---- the gateways of a tier ------------------------------------------------------------------


def test_only_usable_gateways_of_the_lowest_order_are_in_a_tier() -> None:
    gateways = by_name(
        GatewayThroughput("spare", 1, order=3),
        GatewayThroughput("second", 1, order=2),
        GatewayThroughput("equal", 1, order=2),
    )
    assert tier_of(["first", "spare", "second", "equal"], gateways) == {"second", "equal"}
    assert tier_of(["spare"], gateways) == {"spare"}
    assert tier_of(["first"], gateways) == EMPTY_TIER


def test_clients_are_split_by_operator_code() -> None:
    routing = Routing(
        {"": frozenset({"a"}), "903": frozenset({"a", "b"}), "999": frozenset({"c"})},
        by_name(*TWO_GATEWAYS),
    )
    shares = routing.shares({"903": 50, "916": 10, "917": 20, "999": 20})
    assert shares == {BOTH: 0.5, A: 0.3, EMPTY_TIER: 0.2}
    assert routing.single_tier(None) is None
    assert routing.single_tier("b") == B
    assert routing.single_tier("c") == EMPTY_TIER


def test_the_rates_of_all_workers_are_added() -> None:
    gateways = of_workers(by_name(GatewayThroughput("a", 10), GatewayThroughput("b", None)), 3)
    assert [gateway.rate for gateway in gateways.values()] == [30, None]


# ---- examples --------------------------------------------------------------------------------


def test_routes_with_gateways_of_their_own_are_sent_at_the_same_time() -> None:
    result = forecast_tiers({A: 600, B: 200})
    assert seconds(result) == 60
    assert result.rate == 20


def test_gateways_without_weights_add_up() -> None:
    assert seconds(forecast_tiers({BOTH: 600})) == 30


def test_the_slowest_gateway_for_its_weight_limits_the_others() -> None:
    # the gateway a gets three of four messages, so b sends one for three of a
    gateways = GatewayThroughput("a", 15, weight=3), GatewayThroughput("b", 10)
    result = forecast_tiers({BOTH: 600}, *gateways)
    assert seconds(result) == pytest.approx(600 / 20)
    assert result.rate == pytest.approx(20)


def test_a_gateway_shares_its_rate_equally_among_the_routes_that_use_it() -> None:
    # The gateway a gives 5 a second to each of its routes, so that the first has 100 messages left
    # to send after 20 seconds, when 300 of the other route are sent; its remaining 600 messages
    # then have both gateways.
    assert seconds(forecast_tiers({A: 100, BOTH: 900})) == pytest.approx(20 + 600 / 20)


def test_other_mailings_slow_only_the_routes_whose_gateways_they_use() -> None:
    others = {A: [600]}
    assert seconds(forecast_tiers({A: 100}, others=others)) == pytest.approx(20)
    assert seconds(forecast_tiers({B: 100}, others=others)) == pytest.approx(10)
    # while the other mailing has the half of a, this one gets 15 a second
    assert seconds(forecast_tiers({BOTH: 300}, others=others)) == pytest.approx(20)


def test_a_mailing_without_enough_time_in_one_route_misses_the_clients_of_that_route() -> None:
    result = forecast_tiers({A: 1_000, B: 100}, lasts=timedelta(seconds=60))
    assert result.shortfalls == (Shortfall("UTC", 400, "no_time"),)
    assert result.reached == 700


def test_shares_of_clients_add_up_to_whole_clients() -> None:
    result = forecast_tiers({A: 100 / 3, B: 200 / 3}, lasts=timedelta(seconds=1))
    assert (result.clients, result.reached, result.missed) == (100, 20, 80)


def test_clients_without_a_usable_gateway_are_neither_reached_nor_missed() -> None:
    result = forecast_tiers({A: 100, EMPTY_TIER: 7})
    assert (result.clients, result.reached, result.missed) == (107, 100, 0)
    assert result.without_gateway == 7
    assert result.done_at is None
    assert result.rate == 10
    only = forecast_tiers({EMPTY_TIER: 7})
    assert (only.reached, only.without_gateway, only.rate, only.done_at) == (0, 7, None, None)


def test_without_a_gateway_a_window_that_opens_too_late_is_still_the_reason() -> None:
    window = SendingWindow(time(9), time(11))  # it opens on the next day
    result = forecast_tiers({A: 5, EMPTY_TIER: 7}, window=window)
    assert (result.missed, result.without_gateway) == (12, 0)


def test_a_route_of_unknown_rate_makes_the_rate_of_the_mailing_unknown() -> None:
    gateways = GatewayThroughput("a", 10), GatewayThroughput("b", None)
    result = forecast_tiers({A: 10**6, B: 1, EMPTY_TIER: 3}, *gateways, lasts=timedelta(seconds=9))
    assert result.rate is None
    assert (result.reached, result.without_gateway) == (10**6 + 1, 3)
    # together with a measured gateway, one that is not measured yet counts as nothing
    assert forecast_tiers({BOTH: 100}, *gateways).rate == 10


# ---- rules -----------------------------------------------------------------------------------

tiers = st.sets(st.sampled_from("abc"), max_size=3).map(Tier)
rates = st.sampled_from([0, 0.01, 1, 30]) | st.floats(0.01, 1000)
weights = st.none() | st.integers(1, 9)
clients_by_tier = st.dictionaries(tiers, st.integers(0, 50_000), max_size=4)
others = st.dictionaries(tiers, st.lists(st.integers(0, 50_000), max_size=3), max_size=3)
throughputs = st.tuples(
    *(st.builds(GatewayThroughput, st.just(name), rates, weight=weights) for name in "abc")
)


@thorough
@given(clients_by_tier, throughputs, others)
def test_every_client_is_counted_once(
    clients: dict[Tier, float],
    gateways: tuple[GatewayThroughput, ...],
    of_others: dict[Tier, list[float]],
) -> None:
    result = forecast_tiers(clients, *gateways, others=of_others)
    assert result.clients == sum(clients.values())
    assert result.without_gateway == clients.get(EMPTY_TIER, 0)
    assert min(result.reached, result.missed, result.waiting) >= 0
    assert (result.done_at is not None) == (result.reached == result.clients)


@thorough
@given(clients_by_tier, throughputs, others)
def test_gateways_never_send_more_than_their_rate(
    clients: dict[Tier, float],
    gateways: tuple[GatewayThroughput, ...],
    of_others: dict[Tier, list[float]],
) -> None:
    lasts = timedelta(minutes=10)
    result = forecast_tiers(clients, *gateways, others=of_others, lasts=lasts)
    total = sum(gateway.rate or 0 for gateway in gateways)
    assert result.reached <= total * lasts.total_seconds() + 1e-3


@thorough
@given(st.integers(1, 50_000), rates.filter(bool), st.lists(st.integers(0, 9_000), max_size=3))
def test_two_tiers_that_share_no_gateway_are_forecast_as_two_mailings(
    clients: int, rate: float, of_others: list[float]
) -> None:
    gateways = GatewayThroughput("a", rate), GatewayThroughput("b", 7)
    together = forecast_tiers({A: clients, B: 900}, *gateways, others={B: of_others})
    alone = [
        forecast_mailing(RecipientGroup("UTC", clients), rate=rate),
        forecast_mailing(RecipientGroup("UTC", 900), rate=7, messages_of_others=of_others),
    ]
    assert together.missed == pytest.approx(sum(each.missed for each in alone), abs=1)
    if together.done_at is not None:
        ends = [each.done_at for each in alone if each.done_at is not None]
        assert abs(together.done_at - max(ends)) < timedelta(milliseconds=1)


# ---- a rate of the mailing -------------------------------------------------------------------


def test_rate_of_a_mailing_is_for_all_its_tiers_together() -> None:
    result = forecast_tiers({A: 300, B: 300}, pace=Pace(rate=5))
    assert seconds(result) == pytest.approx(120)


def test_other_mailings_get_what_a_mailing_with_a_rate_leaves() -> None:
    limited = OtherMailing(10_000, Pace(rate=2))
    capacity = Capacity(by_name(*TWO_GATEWAYS), {A: [limited]})
    groups = [RecipientGroup("UTC", 800, tier=A)]
    result = run(
        forecast(
            groups,
            start=NOON,
            end=NOON + timedelta(hours=6),
            window=None,
            at=NOON,
            capacity=capacity,
        )
    )
    assert seconds(result) == pytest.approx(100)  # 8 of 10 a second
