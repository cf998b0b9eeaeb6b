"""The delivery rate of a gateway, and when it counts as fallen."""

import pytest

from mailer.gateway_control.delivery import (
    MIN_DROP_MESSAGES,
    DeliveryCounts,
    DeliveryDrop,
    find_drop,
)


def counts(delivered: int, undelivered: int = 0, no_receipt: int = 0) -> DeliveryCounts:
    """Return counts with as many messages that await a receipt, which must not matter."""
    awaiting = delivered + undelivered
    return DeliveryCounts(awaiting, no_receipt, delivered, undelivered)


def test_messages_that_await_a_receipt_are_accepted_but_not_in_the_rate() -> None:
    some = DeliveryCounts(awaiting=50, no_receipt=5, delivered=30, undelivered=15)
    assert some.accepted == 100
    assert some.rate == 30 / 50


def test_there_is_no_rate_before_a_receipt_is_known() -> None:
    assert DeliveryCounts(awaiting=7).rate is None


def test_counts_of_two_periods_are_added() -> None:
    assert DeliveryCounts(1, 2, 3, 4) + DeliveryCounts(10, 20, 30, 40) == DeliveryCounts(
        11, 22, 33, 44
    )


def test_a_lower_rate_is_a_drop() -> None:
    assert find_drop(counts(61, 39), counts(940, 60)) == DeliveryDrop(0.61, 0.94)


def test_missing_receipts_lower_the_rate() -> None:
    assert find_drop(counts(61, no_receipt=39), counts(940, 60)) == DeliveryDrop(0.61, 0.94)


@pytest.mark.parametrize(
    ("last_hour", "day_before"),
    [
        (counts(85, 15), counts(940, 60)),  # less than ten percentage points lower
        (counts(98, 2), counts(900, 100)),
        (counts(0, MIN_DROP_MESSAGES - 1), counts(940, 60)),
        (counts(0, 500), counts(MIN_DROP_MESSAGES - 1)),
        (counts(0, 500), counts(0)),
        (counts(0), counts(940, 60)),
    ],
    ids=["small", "rise", "few now", "few before", "none before", "none now"],
)
def test_a_rate_that_has_not_clearly_fallen_is_no_drop(
    last_hour: DeliveryCounts, day_before: DeliveryCounts
) -> None:
    assert find_drop(last_hour, day_before) is None
