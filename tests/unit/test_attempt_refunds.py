"""Refunds of failed attempts when the breaker opens."""

from tests.factories import NOON

from mailer.dispatch.attempt_refunds import AttemptRefunds
from mailer.message.model import ClaimedMessage


def create_claim(message_id: int, attempts: int = 1) -> ClaimedMessage:
    """Return a claim for the attempt number `attempts` of a message."""
    return ClaimedMessage(
        id=message_id,
        mailing_id=1,
        attempts=attempts,
        lease_expires_at=NOON,
        phone="79161234567",
        time_zone="UTC",
    )


def test_nothing_is_refunded_before_the_breaker_opens() -> None:
    refunds = AttemptRefunds()
    refunds.record_failure("channel", create_claim(1), failed_at=1)
    assert refunds.take_refundable(unrecorded=set()) == []


def test_attempt_is_refunded_once() -> None:
    refunds = AttemptRefunds()
    refunds.record_failure("channel", create_claim(1), failed_at=1)
    refunds.confirm_outage("channel")
    assert refunds.take_refundable(unrecorded=set()) == [create_claim(1)]
    assert refunds.take_refundable(unrecorded=set()) == []


def test_attempt_that_could_not_be_refunded_is_refunded_later() -> None:
    refunds = AttemptRefunds()
    refunds.put_back([create_claim(1)])
    assert refunds.take_refundable(unrecorded=set()) == [create_claim(1)]


def test_only_failures_since_the_start_of_the_last_success_are_refunded() -> None:
    refunds = AttemptRefunds()
    for second in (1, 2, 3):
        refunds.record_failure("channel", create_claim(message_id=second), failed_at=second)
    refunds.record_success("channel", started_at=2)
    refunds.confirm_outage("channel")
    assert refunds.take_refundable(unrecorded=set()) == [create_claim(3)]


def test_success_that_started_before_a_failure_does_not_discard_it() -> None:
    refunds = AttemptRefunds()
    refunds.record_failure("channel", create_claim(1), failed_at=5)
    refunds.record_success("channel", started_at=4.9)
    refunds.confirm_outage("channel")
    assert refunds.take_refundable(unrecorded=set()) == [create_claim(1)]


def test_message_with_an_unrecorded_result_is_refunded_later() -> None:
    refunds = AttemptRefunds()
    first_attempt, second_attempt = create_claim(1), create_claim(1, attempts=2)
    other = create_claim(2)
    for claim in (first_attempt, other, second_attempt):
        refunds.record_failure("channel", claim, failed_at=1)
    refunds.confirm_outage("channel")
    assert refunds.take_refundable(unrecorded={1}) == [other]
    assert refunds.take_refundable(unrecorded=set()) == [first_attempt, second_attempt]


def test_discarded_claim_is_not_refunded() -> None:
    refunds = AttemptRefunds()
    for message_id in (1, 2, 3):
        refunds.record_failure("channel", create_claim(message_id), failed_at=1)
    refunds.discard([create_claim(1)])
    refunds.confirm_outage("channel")
    refunds.discard([create_claim(2)])
    assert refunds.take_refundable(unrecorded=set()) == [create_claim(3)]


def test_channels_do_not_change_each_others_failures() -> None:
    refunds = AttemptRefunds()
    refunds.record_failure("one channel", create_claim(1), failed_at=1)
    refunds.record_failure("other channel", create_claim(2), failed_at=1)

    refunds.record_success("other channel", started_at=2)
    refunds.confirm_outage("other channel")
    assert refunds.take_refundable(unrecorded=set()) == []

    refunds.confirm_outage("one channel")
    assert refunds.take_refundable(unrecorded=set()) == [create_claim(1)]
