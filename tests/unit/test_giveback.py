"""Which attempts are given back when the breaker opens."""

from datetime import UTC, datetime

from mailer.dispatch.giveback import GiveBack
from mailer.message.model import ClaimedMessage

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


def a_claim(message_id: int, attempts: int = 1) -> ClaimedMessage:
    return ClaimedMessage(message_id, 1, attempts, NOON, "79161234567", "Europe/Moscow")


def test_nothing_is_given_back_before_the_breaker_opens() -> None:
    give_back = GiveBack()
    give_back.fail(a_claim(1), 1)
    assert give_back.take({}) == []


def test_what_failed_since_the_last_success_began_is_given_back() -> None:
    give_back = GiveBack()
    for number in (1, 2, 3):
        give_back.fail(a_claim(number), number)
    give_back.succeed(began=2)
    give_back.explain()
    assert give_back.take({}) == [a_claim(3)]
    assert give_back.take({}) == []


def test_a_success_that_began_before_a_failure_says_nothing_of_it() -> None:
    give_back = GiveBack()
    give_back.fail(a_claim(1), 5)
    give_back.succeed(began=4.9)
    give_back.explain()
    assert give_back.take({}) == [a_claim(1)]


def test_a_message_that_still_changes_waits() -> None:
    give_back = GiveBack()
    for claim in (a_claim(1), a_claim(2), a_claim(1, attempts=2)):
        give_back.fail(claim, 1)
    give_back.explain()
    assert give_back.take({1}) == [a_claim(2)]
    assert give_back.take({}) == [a_claim(1), a_claim(1, attempts=2)]


def test_what_another_has_taken_over_is_not_given_back() -> None:
    give_back = GiveBack()
    for number in (1, 2, 3):
        give_back.fail(a_claim(number), number)
    give_back.forget([a_claim(1)])
    give_back.explain()
    give_back.forget([a_claim(2)])
    assert give_back.take({}) == [a_claim(3)]
