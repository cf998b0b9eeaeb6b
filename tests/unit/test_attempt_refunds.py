"""Refunds of failed attempts when the breaker opens."""

from tests.factories import NOON

from mailer.dispatch.attempt_refunds import AttemptRefunds
from mailer.message.model import ClaimedMessage


def create_claim(message_id: int, attempts: int = 1) -> ClaimedMessage:
    return ClaimedMessage(message_id, 1, attempts, NOON, "79161234567", "Europe/Moscow")


def test_nothing_is_refunded_before_the_breaker_opens() -> None:
    refunds = AttemptRefunds()
    refunds.record_failure("a", create_claim(1), 1)
    assert refunds.drain({}) == []


def test_failures_since_the_start_of_the_last_success_are_refunded() -> None:
    refunds = AttemptRefunds()
    for number in (1, 2, 3):
        refunds.record_failure("a", create_claim(number), number)
    refunds.record_success("a", started=2)
    refunds.confirm_outage("a")
    assert refunds.drain({}) == [create_claim(3)]
    assert refunds.drain({}) == []


def test_success_that_started_before_a_failure_does_not_discard_it() -> None:
    refunds = AttemptRefunds()
    refunds.record_failure("a", create_claim(1), 5)
    refunds.record_success("a", started=4.9)
    refunds.confirm_outage("a")
    assert refunds.drain({}) == [create_claim(1)]


def test_message_with_an_unrecorded_result_is_refunded_later() -> None:
    refunds = AttemptRefunds()
    for claim in (create_claim(1), create_claim(2), create_claim(1, attempts=2)):
        refunds.record_failure("a", claim, 1)
    refunds.confirm_outage("a")
    assert refunds.drain({1}) == [create_claim(2)]
    assert refunds.drain({}) == [create_claim(1), create_claim(1, attempts=2)]


def test_discarded_claim_is_not_refunded() -> None:
    refunds = AttemptRefunds()
    for number in (1, 2, 3):
        refunds.record_failure("a", create_claim(number), number)
    refunds.discard([create_claim(1)])
    refunds.confirm_outage("a")
    refunds.discard([create_claim(2)])
    assert refunds.drain({}) == [create_claim(3)]


def test_channels_do_not_change_each_others_failures() -> None:
    refunds = AttemptRefunds()
    refunds.record_failure("a", create_claim(1), 1)
    refunds.record_failure("b", create_claim(2), 1)
    refunds.record_success("b", started=2)
    refunds.confirm_outage("b")
    assert refunds.drain({}) == []
    refunds.confirm_outage("a")
    assert refunds.drain({}) == [create_claim(1)]
