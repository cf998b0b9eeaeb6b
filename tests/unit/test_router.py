"""The router chooses the gateway that gets the next messages, by order, weight and outages."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.gateway.router import Candidate, Router


def candidate(  # the fields of a candidate
    name: str = "a",
    *,
    order: int = 1,
    weight: int | None = None,
    is_usable: bool = True,
    capacity: int = 10,
) -> Candidate:
    return Candidate(name, order, weight, is_usable, capacity)


candidates = st.lists(
    st.builds(
        Candidate,
        name=st.sampled_from("abcdef"),
        order=st.integers(1, 3),
        weight=st.none() | st.integers(1, 5),
        is_usable=st.booleans(),
        capacity=st.integers(0, 20),
    ),
    unique_by=lambda each: each.name,
)


def give_out(router: Router, *gateways: Candidate, messages: int) -> Counter[str]:
    """Give out messages as the claimer does; return how many each gateway got."""
    given_out: Counter[str] = Counter()
    while (left := messages - given_out.total()) > 0:
        choice = router.choose(gateways)
        assert choice is not None
        claimed = min(choice.capacity, left)
        router.record(choice, claimed)
        given_out[choice.name] += claimed
    return given_out


@thorough
@given(candidates)
def test_choice_has_capacity_and_the_lowest_usable_order(gateways: list[Candidate]) -> None:
    choice = Router().choose(gateways)
    usable_orders = [each.order for each in gateways if each.is_usable]
    tier = min(usable_orders, default=99)
    if choice is None:
        assert not any(
            each.capacity and not each.is_usable for each in gateways if each.order <= tier
        )
        return
    chosen = next(each for each in gateways if each.name == choice.name)
    assert 1 <= choice.capacity <= chosen.capacity
    if chosen.is_usable:
        assert chosen.order == tier
    else:
        assert choice.capacity == 1
        assert chosen.order <= tier


@thorough
@given(candidates)
def test_messages_wait_only_if_no_gateway_of_the_tier_can_take_them(
    gateways: list[Candidate],
) -> None:
    without_weights = [
        Candidate(each.name, each.order, None, each.is_usable, each.capacity) for each in gateways
    ]
    tier = min((each.order for each in gateways if each.is_usable), default=99)
    can_take = [
        each
        for each in gateways
        if each.capacity and (each.order == tier or (not each.is_usable and each.order < tier))
    ]
    assert (Router().choose(without_weights) is not None) == bool(can_take)


@thorough
@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 5), min_size=1), st.integers(1, 50))
def test_messages_are_shared_strictly_by_weight(weights: dict[str, int], capacity: int) -> None:
    gateways = [
        candidate(name, weight=weight, capacity=capacity) for name, weight in weights.items()
    ]
    total = sum(weights.values())
    given_out = give_out(Router(), *gateways, messages=100 * total)
    for name, weight in weights.items():
        assert given_out[name] == pytest.approx(100 * weight, abs=capacity)


@thorough
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 5),
)
def test_gateway_is_not_compensated_for_an_outage(
    outages: list[tuple[bool, bool]], weight: int
) -> None:
    router = Router()
    for is_a_usable, is_b_usable in outages:
        give = [candidate("a", weight=weight, is_usable=is_a_usable, capacity=int(is_a_usable))]
        give.append(candidate("b", weight=1, is_usable=is_b_usable, capacity=int(is_b_usable)))
        if is_a_usable or is_b_usable:
            give_out(router, *give, messages=20)
    both = candidate("a", weight=weight, capacity=5), candidate("b", weight=1, capacity=5)
    given_out = give_out(router, *both, messages=100 * (weight + 1))
    assert given_out["b"] == pytest.approx(100, abs=10)


def test_without_weights_a_busy_gateway_leaves_messages_to_the_others() -> None:
    choice = Router().choose([candidate("a", capacity=0), candidate("b", capacity=7)])
    assert choice is not None
    assert (choice.name, choice.capacity) == ("b", 7)


def test_with_weights_the_others_wait_for_a_busy_gateway() -> None:
    router = Router()
    give_out(router, candidate("b", weight=1), candidate("c", weight=1), messages=1)
    assert router.choose([candidate("b", weight=1), candidate("c", weight=1, capacity=0)]) is None


def test_busy_gateway_makes_messages_wait_and_not_go_to_the_next_order() -> None:
    assert Router().choose([candidate("a", capacity=0), candidate("b", order=2)]) is None


def test_probe_of_a_gateway_in_an_outage_comes_first_and_is_one_message() -> None:
    in_outage = candidate("a", is_usable=False, capacity=1)
    choice = Router().choose([in_outage, candidate("b", order=2)])
    assert choice is not None
    assert (choice.name, choice.capacity) == ("a", 1)


def test_gateway_of_a_higher_order_is_not_probed_while_a_lower_one_is_usable() -> None:
    choice = Router().choose([candidate("a"), candidate("b", order=2, is_usable=False, capacity=1)])
    assert choice is not None
    assert choice.name == "a"


def test_nothing_is_chosen_without_a_gateway() -> None:
    assert Router().choose([]) is None
