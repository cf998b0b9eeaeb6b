"""How much is claimed, and from whom."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from mailer.dispatch.share import FairShare, Stock


def asking(mailings: Iterable[int]) -> FairShare:
    """A share that is to ask these mailings."""
    shares = FairShare()
    shares.ask(mailings)
    return shares


def test_who_is_to_be_asked_is_asked_with_an_equal_share() -> None:
    asked, share = asking([1, 2, 3]).turn({1, 2, 3}, 30, now=0)
    assert sorted(asked) == [1, 2, 3]
    assert share == 10


def test_one_mailing_alone_gets_all_the_room() -> None:
    assert asking([7]).turn({7}, 50, now=0) == ([7], 50)


def test_who_is_not_to_be_asked_is_not_asked() -> None:
    asked, _ = FairShare().turn({1, 2}, 50, now=0)
    assert asked == []


def test_who_gave_a_full_share_is_asked_again_and_who_had_less_is_told() -> None:
    shares = asking([1, 2])
    asked, share = shares.turn({1, 2}, 10, now=0)
    assert shares.record_claimed(asked, share, {1: share, 2: share - 1}) == [2]
    assert shares.is_hungry
    assert shares.turn({1, 2}, 10, now=0) == ([1], 10)


def test_who_waits_is_asked_when_its_moment_has_come() -> None:
    shares = FairShare()
    shares.wait(1, 5)
    shares.wait(1, 7)  # earlier counts
    shares.wait(2, 6)
    assert shares.next_moment() == 5
    assert shares.turn({1, 2}, 10, now=4)[0] == []
    assert shares.turn({1, 2}, 10, now=5)[0] == [1]
    assert shares.next_moment() == 6
    shares.ask([2])
    assert shares.next_moment() is None
    assert shares.turn({1, 2}, 10, now=5)[0] == [2]


def test_a_mailing_that_is_asked_for_again_meanwhile_is_asked_again() -> None:
    shares = asking([1])
    asked, share = shares.turn({1}, 10, now=0)
    shares.ask([1])
    assert shares.record_claimed(asked, share, {}) == []
    assert shares.turn({1}, 10, now=0)[0] == [1]


def test_a_mailing_that_no_longer_runs_is_not_asked() -> None:
    shares = asking([1, 2])
    asked, share = shares.turn({1, 2}, 10, now=0)
    shares.record_claimed(asked, share, {1: share, 2: share})
    shares.ask([3])
    assert shares.turn({2}, 10, now=0)[0] == [2]


def test_a_new_mailing_does_not_wait_for_thousands_that_came_before() -> None:
    running = range(10_001)
    shares = asking(range(10_000))
    for _ in range(3):
        asked, share = shares.turn(running, 20, now=0)
        shares.record_claimed(asked, share, dict.fromkeys(asked, share))
    shares.ask([10_000])
    assert 10_000 in shares.turn(running, 20, now=0)[0]


def test_thousands_of_new_mailings_leave_half_to_the_line() -> None:
    shares = asking([1])
    asked, share = shares.turn([1], 20, now=0)
    shares.record_claimed(asked, share, {1: share})
    shares.ask(range(2, 10_000))
    assert 1 in shares.turn(range(10_000), 20, now=0)[0]


def test_the_earliest_of_the_new_is_not_kept_waiting_by_later_ones() -> None:
    shares = asking([0])
    for turn in range(3):
        shares.ask(range(100 * turn + 1, 100 * turn + 101))
        asked, _ = shares.turn(range(1000), 2, now=0)
        assert turn > 0 or 0 in asked


@given(
    running=st.sets(st.integers(1, 1000), min_size=1, max_size=40),
    room=st.integers(1, 500),
    turns=st.integers(1, 30),
)
def test_no_turn_asks_for_more_than_the_room(running: set[int], room: int, turns: int) -> None:
    shares = asking(running)
    for now in range(turns):
        asked, share = shares.turn(running, room, now)
        assert len(set(asked)) == len(asked)
        assert set(asked) <= running
        assert 1 <= len(asked) * share <= room
        shares.record_claimed(asked, share, dict.fromkeys(asked, share))


@given(
    running=st.sets(st.integers(1, 1000), min_size=1, max_size=60),
    room=st.integers(1, 20),
    greedy=st.sets(st.integers(1, 1000)),
)
def test_nobody_starves_however_greedy_the_others(
    running: set[int], room: int, greedy: set[int]
) -> None:
    shares = asking(running)
    served: set[int] = set()
    for _ in range(2 * len(running)):
        asked, share = shares.turn(running, room, now=1)
        served |= set(asked)
        claimed = {mailing: share for mailing in asked if mailing in greedy}
        shares.record_claimed(asked, share, claimed)
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
