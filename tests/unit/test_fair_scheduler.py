"""How many messages the next claim takes, and from which mailings."""

from collections import Counter
from collections.abc import Iterable, Mapping

from hypothesis import given
from hypothesis import strategies as st

from mailer.dispatch.fair_scheduler import FairScheduler, MailingBatch
from mailer.dispatch.prefetch import PrefetchSizer
from mailer.mailing.field_types import PRIORITY_WEIGHTS


def create_scheduler(mailings: Iterable[int]) -> FairScheduler:
    """Return a scheduler to which these mailings were added."""
    scheduler = FairScheduler()
    scheduler.add(mailings)
    return scheduler


def record_full_shares(scheduler: FairScheduler, batch: MailingBatch) -> None:
    """Record a claim in which every mailing of a batch filled its share."""
    scheduler.record_claimed(batch, batch.shares)


def test_each_added_mailing_gets_an_equal_share() -> None:
    batch = create_scheduler([1, 2, 3]).next_batch({1, 2, 3}, capacity=30, now=0)
    assert batch.shares == {1: 10, 2: 10, 3: 10}


def test_single_mailing_gets_the_whole_capacity() -> None:
    assert create_scheduler([7]).next_batch({7}, capacity=50, now=0) == MailingBatch({7: 50})


def test_mailing_that_was_not_added_is_not_in_the_batch() -> None:
    assert FairScheduler().next_batch({1, 2}, capacity=50, now=0).mailing_ids == []


def test_mailing_with_a_full_share_is_in_the_next_batch_and_the_others_are_returned() -> None:
    scheduler = create_scheduler([1, 2])
    batch = scheduler.next_batch({1, 2}, capacity=10, now=0)
    claimed_counts = {1: batch.shares[1], 2: batch.shares[2] - 1}
    assert scheduler.record_claimed(batch, claimed_counts) == [2]
    assert scheduler.queued
    assert scheduler.next_batch({1, 2}, capacity=10, now=0) == MailingBatch({1: 10})


def test_mailing_added_for_a_time_is_in_the_batch_from_that_time_on() -> None:
    scheduler = FairScheduler()
    scheduler.add_at(1, 5)
    assert scheduler.next_due() == 5
    assert scheduler.next_batch({1}, capacity=10, now=4).mailing_ids == []
    assert scheduler.next_batch({1}, capacity=10, now=5).mailing_ids == [1]
    assert scheduler.next_due() is None


def test_of_two_times_for_a_mailing_the_earlier_one_counts() -> None:
    scheduler = FairScheduler()
    for moment in (6, 5, 7):
        scheduler.add_at(1, moment)
    assert scheduler.next_batch({1}, capacity=10, now=5).mailing_ids == [1]
    assert scheduler.next_due() is None


def test_adding_a_mailing_now_drops_its_later_time() -> None:
    scheduler = FairScheduler()
    scheduler.add_at(1, 6)
    scheduler.add([1])
    assert scheduler.next_due() is None
    assert scheduler.next_batch({1}, capacity=10, now=5).mailing_ids == [1]


def test_mailing_added_during_its_claim_is_in_the_next_batch() -> None:
    scheduler = create_scheduler([1])
    batch = scheduler.next_batch({1}, capacity=10, now=0)
    scheduler.add([1])
    assert scheduler.record_claimed(batch, claimed_counts={}) == []
    assert scheduler.next_batch({1}, capacity=10, now=0).mailing_ids == [1]


def test_mailing_that_no_longer_runs_is_not_in_the_batch() -> None:
    scheduler = create_scheduler([1, 2])
    record_full_shares(scheduler, scheduler.next_batch({1, 2}, capacity=10, now=0))
    scheduler.add([3])
    assert scheduler.next_batch({2}, capacity=10, now=0).mailing_ids == [2]


def test_new_mailing_does_not_wait_for_thousands_of_earlier_ones() -> None:
    running = range(10_001)
    earlier, new = range(10_000), 10_000
    scheduler = create_scheduler(earlier)
    for _ in range(3):
        record_full_shares(scheduler, scheduler.next_batch(running, capacity=20, now=0))
    scheduler.add([new])
    assert new in scheduler.next_batch(running, capacity=20, now=0).mailing_ids


def test_new_mailings_leave_half_of_the_batch_to_earlier_ones() -> None:
    running = range(10_000)
    earlier, new = 1, range(2, 10_000)
    scheduler = create_scheduler([earlier])
    record_full_shares(scheduler, scheduler.next_batch(running, capacity=20, now=0))
    scheduler.add(new)
    assert earlier in scheduler.next_batch(running, capacity=20, now=0).mailing_ids


def test_earliest_new_mailing_is_in_the_batch_although_many_later_ones_are_new() -> None:
    earliest, later = 0, range(1, 101)
    scheduler = create_scheduler([earliest])
    scheduler.add(later)
    assert earliest in scheduler.next_batch(range(101), capacity=2, now=0).mailing_ids


@given(
    running=st.sets(st.integers(1, 1000), min_size=1, max_size=40),
    capacity=st.integers(1, 500),
    rounds=st.integers(1, 30),
)
def test_batch_never_exceeds_the_capacity(running: set[int], capacity: int, rounds: int) -> None:
    scheduler = create_scheduler(running)
    for now in range(rounds):
        batch = scheduler.next_batch(running, capacity, now)
        assert batch.shares.keys() <= running
        assert 1 <= sum(batch.shares.values()) <= capacity
        assert len(set(batch.shares.values())) == 1  # equal mailings
        record_full_shares(scheduler, batch)


@given(
    running=st.sets(st.integers(1, 1000), min_size=1, max_size=60),
    capacity=st.integers(1, 20),
    backlogged=st.sets(st.integers(1, 1000)),
)
def test_no_mailing_starves_because_of_the_backlog_of_others(
    running: set[int], capacity: int, backlogged: set[int]
) -> None:
    """Every claim from a backlogged mailing fills its share; other mailings have no message."""
    scheduler = create_scheduler(running)
    seen_in_batches: set[int] = set()
    for _ in range(2 * len(running)):
        batch = scheduler.next_batch(running, capacity, now=1)
        seen_in_batches |= set(batch.mailing_ids)
        claimed_counts = {
            mailing: share for mailing, share in batch.shares.items() if mailing in backlogged
        }
        scheduler.record_claimed(batch, claimed_counts)
    assert seen_in_batches == running


WEIGHTS = st.dictionaries(
    st.integers(1, 1000), st.sampled_from(list(PRIORITY_WEIGHTS.values())), min_size=1, max_size=40
)
"""Mailings with the weights of their priorities."""


def claim_all_shares(weights: Mapping[int, int], capacity: int, batches: int) -> Counter[int]:
    """Return how many messages of each mailing are claimed if all have more than enough."""
    scheduler = FairScheduler(weights.__getitem__)
    scheduler.add(weights)
    claimed = Counter[int]()
    for _ in range(batches):
        batch = scheduler.next_batch(weights, capacity, now=0)
        assert 1 <= sum(batch.shares.values()) <= capacity
        assert min(batch.shares.values()) > 0
        claimed.update(batch.shares)
        record_full_shares(scheduler, batch)
    return claimed


@given(weights=WEIGHTS, capacity=st.integers(1, 500))
def test_mailings_with_a_backlog_share_the_capacity_by_their_weights(
    weights: dict[int, int], capacity: int
) -> None:
    batches = 40 * len(weights)
    claimed = claim_all_shares(weights, capacity, batches)
    per_weight = claimed.total() / sum(weights.values())
    # a batch of equal mailings leaves free what does not divide by their number
    assert claimed.total() >= batches * capacity / 2
    for mailing_id, weight in weights.items():
        rounding = 2 * capacity + len(weights)
        assert abs(claimed[mailing_id] - per_weight * weight) <= rounding


@given(weights=WEIGHTS, capacity=st.integers(1, 500))
def test_no_mailing_starves_however_low_its_priority_is(
    weights: dict[int, int], capacity: int
) -> None:
    batches = 2 * sum(weights.values())
    assert claim_all_shares(weights, capacity, batches).keys() == weights.keys()


@given(weight=st.sampled_from(list(PRIORITY_WEIGHTS.values())), capacity=st.integers(1, 500))
def test_mailing_without_competition_gets_all_of_the_capacity(weight: int, capacity: int) -> None:
    assert claim_all_shares({7: weight}, capacity, batches=3)[7] == 3 * capacity


@given(
    mailing_ids=st.sets(st.integers(1, 1000), min_size=1, max_size=40),
    weight=st.sampled_from(list(PRIORITY_WEIGHTS.values())),
    capacity=st.integers(1, 500),
)
def test_mailings_of_one_priority_share_as_if_there_were_no_priorities(
    mailing_ids: set[int], weight: int, capacity: int
) -> None:
    equal = claim_all_shares(dict.fromkeys(mailing_ids, weight), capacity, batches=20)
    assert equal == claim_all_shares(dict.fromkeys(mailing_ids, 4), capacity, batches=20)


def test_low_mailing_gets_what_a_high_one_leaves() -> None:
    weights = {1: PRIORITY_WEIGHTS["high"], 2: PRIORITY_WEIGHTS["low"]}
    scheduler = FairScheduler(weights.__getitem__)
    scheduler.add([2])
    assert scheduler.next_batch(weights, capacity=50, now=0) == MailingBatch({2: 50})


def test_new_mailing_of_low_priority_is_in_the_next_batch() -> None:
    weights = {1: PRIORITY_WEIGHTS["high"], 2: PRIORITY_WEIGHTS["low"]}
    scheduler = FairScheduler(weights.__getitem__)
    scheduler.add([1])
    record_full_shares(scheduler, scheduler.next_batch(weights, capacity=50, now=0))
    scheduler.add([2])
    assert scheduler.next_batch(weights, capacity=50, now=0).shares.keys() == {1, 2}


def test_new_priority_of_a_waiting_mailing_counts_in_the_next_batch() -> None:
    weights = {1: PRIORITY_WEIGHTS["high"], 2: PRIORITY_WEIGHTS["high"]}
    scheduler = FairScheduler(weights.__getitem__)
    scheduler.add([1, 2])
    record_full_shares(scheduler, scheduler.next_batch(weights, capacity=170, now=0))
    weights[2] = PRIORITY_WEIGHTS["low"]
    scheduler.reweigh(2)
    assert scheduler.queued_weight == 17
    assert scheduler.next_batch(weights, capacity=170, now=0).shares == {1: 160, 2: 10}


def test_mailing_at_its_rate_is_in_no_batch_until_its_next_slot() -> None:
    scheduler = create_scheduler([1, 2])
    batch = scheduler.next_batch({1, 2}, capacity=10, now=0)
    assert scheduler.record_claimed(batch, batch.shares, resume_at={1: 5}) == []
    assert scheduler.next_batch({1, 2}, capacity=10, now=4) == MailingBatch({2: 10})
    assert scheduler.next_due() == 5
    assert scheduler.next_batch({1, 2}, capacity=10, now=5).mailing_ids == [1]


def record_sent(sizer: PrefetchSizer, count: int) -> None:
    for _ in range(count):
        sizer.record_sent()


def test_prefetch_size_follows_the_recent_rate_within_limits() -> None:
    sizer = PrefetchSizer(seconds=2, initial=100, minimum=10, maximum=1000)
    assert sizer.size == 100
    for sent, now, expected_size in (
        (400, 1000.0, 50),  # a very low rate in the first 1,000 seconds, but the size only halves
        (300, 1002.0, 300),
        (900, 1004.0, 900),
        (5000, 1006.0, 1000),  # at most the maximum
        (0, 1008.0, 500),  # it only halves
        (500, 1012.0, 250),  # 500 in four seconds are 250 in two
    ):
        record_sent(sizer, sent)
        sizer.measure(now)
        assert sizer.size == expected_size


def test_rate_is_measured_only_after_the_interval() -> None:
    sizer = PrefetchSizer(seconds=2, initial=100, minimum=10, maximum=1000)
    sizer.measure(1000.0)
    record_sent(sizer, 500)
    size_before = sizer.size
    sizer.measure(1001.9)
    assert sizer.size == size_before
    sizer.measure(1002.0)
    assert sizer.size == 500


@given(
    steps=st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 100)), max_size=20),
    initial=st.integers(10, 1000),
)
def test_prefetch_size_stays_within_limits_and_at_most_halves(
    steps: list[tuple[int, float]], initial: int
) -> None:
    """In each step, a number of messages is sent, and seconds pass until the next measurement."""
    sizer = PrefetchSizer(seconds=1, initial=initial, minimum=10, maximum=1000)
    now = 0.0
    for sent, seconds in steps:
        size_before = sizer.size
        record_sent(sizer, sent)
        now += seconds
        sizer.measure(now)
        assert 10 <= sizer.size <= 1000
        assert sizer.size >= size_before // 2
