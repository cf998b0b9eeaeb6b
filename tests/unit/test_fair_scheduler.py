"""How many messages the next claim takes, and from which mailings."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from mailer.dispatch.fair_scheduler import FairScheduler
from mailer.dispatch.prefetch import PrefetchSizer


def create_scheduler(mailings: Iterable[int]) -> FairScheduler:
    """Return a scheduler to which these mailings were added."""
    scheduler = FairScheduler()
    scheduler.add(mailings)
    return scheduler


def test_each_added_mailing_gets_an_equal_share() -> None:
    batch, share = create_scheduler([1, 2, 3]).next_batch({1, 2, 3}, 30, now=0)
    assert sorted(batch) == [1, 2, 3]
    assert share == 10


def test_single_mailing_gets_the_whole_capacity() -> None:
    assert create_scheduler([7]).next_batch({7}, 50, now=0) == ([7], 50)


def test_mailing_that_was_not_added_is_not_in_the_batch() -> None:
    batch, _ = FairScheduler().next_batch({1, 2}, 50, now=0)
    assert batch == []


def test_mailing_with_a_full_share_is_in_the_next_batch_and_the_others_are_returned() -> None:
    scheduler = create_scheduler([1, 2])
    batch, share = scheduler.next_batch({1, 2}, 10, now=0)
    assert scheduler.record_claimed(batch, share, {1: share, 2: share - 1}) == [2]
    assert scheduler.has_queued
    assert scheduler.next_batch({1, 2}, 10, now=0) == ([1], 10)


def test_mailing_added_for_a_time_is_in_the_batch_from_that_time_on() -> None:
    scheduler = FairScheduler()
    scheduler.add_at(1, 5)
    scheduler.add_at(1, 7)  # the earlier time counts
    scheduler.add_at(2, 6)
    assert scheduler.next_due() == 5
    assert scheduler.next_batch({1, 2}, 10, now=4)[0] == []
    assert scheduler.next_batch({1, 2}, 10, now=5)[0] == [1]
    assert scheduler.next_due() == 6
    scheduler.add([2])
    assert scheduler.next_due() is None
    assert scheduler.next_batch({1, 2}, 10, now=5)[0] == [2]


def test_mailing_added_during_its_claim_is_in_the_next_batch() -> None:
    scheduler = create_scheduler([1])
    batch, share = scheduler.next_batch({1}, 10, now=0)
    scheduler.add([1])
    assert scheduler.record_claimed(batch, share, {}) == []
    assert scheduler.next_batch({1}, 10, now=0)[0] == [1]


def test_mailing_that_no_longer_runs_is_not_in_the_batch() -> None:
    scheduler = create_scheduler([1, 2])
    batch, share = scheduler.next_batch({1, 2}, 10, now=0)
    scheduler.record_claimed(batch, share, {1: share, 2: share})
    scheduler.add([3])
    assert scheduler.next_batch({2}, 10, now=0)[0] == [2]


def test_new_mailing_does_not_wait_for_thousands_of_earlier_ones() -> None:
    running = range(10_001)
    scheduler = create_scheduler(range(10_000))
    for _ in range(3):
        batch, share = scheduler.next_batch(running, 20, now=0)
        scheduler.record_claimed(batch, share, dict.fromkeys(batch, share))
    scheduler.add([10_000])
    assert 10_000 in scheduler.next_batch(running, 20, now=0)[0]


def test_new_mailings_leave_half_of_the_batch_to_earlier_ones() -> None:
    scheduler = create_scheduler([1])
    batch, share = scheduler.next_batch([1], 20, now=0)
    scheduler.record_claimed(batch, share, {1: share})
    scheduler.add(range(2, 10_000))
    assert 1 in scheduler.next_batch(range(10_000), 20, now=0)[0]


def test_earliest_new_mailing_comes_before_later_new_ones() -> None:
    scheduler = create_scheduler([0])
    for number in range(3):
        scheduler.add(range(100 * number + 1, 100 * number + 101))
        batch, _ = scheduler.next_batch(range(1000), 2, now=0)
        assert number > 0 or 0 in batch


@given(
    running=st.sets(st.integers(1, 1000), min_size=1, max_size=40),
    capacity=st.integers(1, 500),
    rounds=st.integers(1, 30),
)
def test_batch_never_exceeds_the_capacity(running: set[int], capacity: int, rounds: int) -> None:
    scheduler = create_scheduler(running)
    for now in range(rounds):
        batch, share = scheduler.next_batch(running, capacity, now)
        assert len(set(batch)) == len(batch)
        assert set(batch) <= running
        assert 1 <= len(batch) * share <= capacity
        scheduler.record_claimed(batch, share, dict.fromkeys(batch, share))


@given(
    running=st.sets(st.integers(1, 1000), min_size=1, max_size=60),
    capacity=st.integers(1, 20),
    backlogged=st.sets(st.integers(1, 1000)),
)
def test_no_mailing_starves_because_of_the_backlog_of_others(
    running: set[int], capacity: int, backlogged: set[int]
) -> None:
    scheduler = create_scheduler(running)
    scheduled: set[int] = set()
    for _ in range(2 * len(running)):
        batch, share = scheduler.next_batch(running, capacity, now=1)
        scheduled |= set(batch)
        claimed = {mailing: share for mailing in batch if mailing in backlogged}
        scheduler.record_claimed(batch, share, claimed)
    assert scheduled == running


def test_prefetch_size_follows_the_recent_rate_within_limits() -> None:
    sizer = PrefetchSizer(seconds=2, initial=100, minimum=10, maximum=1000)
    assert sizer.size == 100
    for sent, now, expected in (
        (400, 1000.0, 50),  # a very low rate so far, but the size at most halves
        (300, 1002.0, 300),
        (900, 1004.0, 900),
        (5000, 1006.0, 1000),
        (0, 1008.0, 500),
        (500, 1012.0, 250),
    ):
        for _ in range(sent):
            sizer.record_sent()
        sizer.measure(now)
        assert sizer.size == expected


def test_rate_is_measured_only_after_the_interval() -> None:
    sizer = PrefetchSizer(seconds=2, initial=100, minimum=10, maximum=1000)
    sizer.measure(1000.0)
    for _ in range(500):
        sizer.record_sent()
    before = sizer.size
    sizer.measure(1001.9)
    assert sizer.size == before
    sizer.measure(1002.0)
    assert sizer.size == 500


@given(
    steps=st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 100)), max_size=20),
    first=st.integers(10, 1000),
)
def test_prefetch_size_stays_within_limits_and_at_most_halves(
    steps: list[tuple[int, float]], first: int
) -> None:
    sizer = PrefetchSizer(seconds=1, initial=first, minimum=10, maximum=1000)
    now = 0.0
    for sent, seconds in steps:
        before = sizer.size
        for _ in range(sent):
            sizer.record_sent()
        now += seconds
        sizer.measure(now)
        assert 10 <= sizer.size <= 1000
        assert sizer.size >= before // 2
