"""How much is claimed, and from whom."""

from hypothesis import given
from hypothesis import strategies as st

from mailer.dispatch.share import FairShare, Stock


def test_everybody_is_asked_first() -> None:
    shares = FairShare(again_after=1)
    asked, share = shares.turn([1, 2, 3], 30, now=0)
    assert sorted(asked) == [1, 2, 3]
    assert share == 10


def test_one_mailing_alone_gets_all_the_room() -> None:
    assert FairShare(again_after=1).turn([7], 50, now=0) == ([7], 50)


def test_nobody_to_ask_is_no_error() -> None:
    asked, _ = FairShare(again_after=1).turn([], 50, now=0)
    assert asked == []


def test_who_gave_a_full_share_is_asked_again_and_who_had_less_is_not() -> None:
    shares = FairShare(again_after=1)
    asked, share = shares.turn([1, 2], 10, now=0)
    shares.served(asked, share, {1: share, 2: share - 1})
    assert shares.is_hungry
    assert shares.turn([1, 2], 10, now=0.5) == ([1], 10)


def test_a_round_ends_when_nobody_had_a_full_share() -> None:
    shares = FairShare(again_after=1)
    asked, share = shares.turn([1, 2], 10, now=0)
    shares.served(asked, share, {})
    assert not shares.is_hungry
    asked, _ = shares.turn([1, 2], 10, now=0.1)
    assert sorted(asked) == [1, 2]


def test_now_and_then_all_are_asked_and_who_still_has_much_comes_first() -> None:
    shares = FairShare(again_after=1)
    asked, share = shares.turn([1, 2], 10, now=5)
    shares.served(asked, share, {2: share})
    asked, _ = shares.turn([1, 2, 3], 30, now=6)
    assert asked[0] == 2
    assert sorted(asked) == [1, 2, 3]


def test_all_are_asked_in_the_next_turn_when_one_may_have_something_due_again() -> None:
    shares = FairShare(again_after=1)
    asked, share = shares.turn([1, 2], 10, now=5)
    shares.served(asked, share, {1: share})
    shares.ask_all()
    asked, _ = shares.turn([1, 2], 10, now=5.1)
    assert asked == [1, 2]
    shares.served(asked, 5, {1: 5})
    assert shares.turn([1, 2], 10, now=5.2) == ([1], 10)


def test_a_mailing_that_no_longer_runs_is_not_asked_in_the_next_round() -> None:
    shares = FairShare(again_after=1)
    asked, share = shares.turn([1, 2], 10, now=0)
    shares.served(asked, share, {1: share, 2: share})
    asked, _ = shares.turn([2], 10, now=2)
    assert asked == [2]


@given(
    running=st.sets(st.integers(1, 1000), min_size=1, max_size=40),
    room=st.integers(1, 500),
    turns=st.integers(1, 30),
)
def test_no_turn_asks_for_more_than_the_room(running: set[int], room: int, turns: int) -> None:
    shares = FairShare(again_after=1)
    for now in range(turns):
        asked, share = shares.turn(running, room, now)
        assert len(set(asked)) == len(asked)
        assert set(asked) <= running
        assert 1 <= len(asked) * share <= room
        shares.served(asked, share, dict.fromkeys(asked, share))


@given(
    running=st.sets(st.integers(1, 1000), min_size=1, max_size=60),
    room=st.integers(1, 20),
    greedy=st.sets(st.integers(1, 1000)),
)
def test_nobody_starves_however_greedy_the_others(
    running: set[int], room: int, greedy: set[int]
) -> None:
    shares = FairShare(again_after=10**9)
    shares.turn(running, room, now=1)
    served: set[int] = set()
    for _ in range(len(running)):
        asked, share = shares.turn(running, room, now=1)
        served |= set(asked)
        claimed = {mailing: share for mailing in asked if mailing in greedy}
        shares.served(asked, share, claimed)
    assert served == running


def test_the_pace_is_what_went_out_lately_within_bounds() -> None:
    stock = Stock(seconds=2, first=100, least=10, most=1000)
    assert stock.ahead == 100
    for sent, now, ahead in (
        (400, 1000.0, 50),  # long before: hardly anything a second, but by half at most
        (300, 1002.0, 300),
        (900, 1004.0, 900),
        (5000, 1006.0, 1000),
        (0, 1008.0, 500),
        (500, 1012.0, 250),
    ):
        for _ in range(sent):
            stock.count()
        stock.measure(now)
        assert stock.ahead == ahead


def test_the_pace_is_not_measured_too_soon() -> None:
    stock = Stock(seconds=2, first=100, least=10, most=1000)
    stock.measure(1000.0)
    for _ in range(500):
        stock.count()
    before = stock.ahead
    stock.measure(1001.9)
    assert stock.ahead == before
    stock.measure(1002.0)
    assert stock.ahead == 500


@given(
    steps=st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 100)), max_size=20),
    first=st.integers(10, 1000),
)
def test_the_pace_keeps_its_bounds_and_falls_by_half_at_most(
    steps: list[tuple[int, float]], first: int
) -> None:
    stock = Stock(seconds=1, first=first, least=10, most=1000)
    now = 0.0
    for sent, passed in steps:
        before = stock.ahead
        for _ in range(sent):
            stock.count()
        now += passed
        stock.measure(now)
        assert 10 <= stock.ahead <= 1000
        assert stock.ahead >= before // 2
