"""The claims of a worker, from the claim until the result is recorded."""

from datetime import timedelta

import pytest
from tests.factories import NOON

from mailer.dispatch.claims import WorkerClaims
from mailer.message.model import ClaimedMessage, MessageResult


@pytest.fixture
def claims() -> WorkerClaims:
    return WorkerClaims(timedelta(seconds=60))


def create_claim(message_id: int, attempts: int = 1) -> ClaimedMessage:
    """Return a claim; a later attempt has a later lease."""
    return ClaimedMessage(
        id=message_id,
        mailing_id=1,
        attempts=attempts,
        lease_expires_at=NOON + timedelta(minutes=attempts),
        phone="79161234567",
        time_zone="UTC",
    )


def delivered(*claims: ClaimedMessage) -> list[MessageResult]:
    """Return results of these claims. Their status does not matter here."""
    return [MessageResult(claim, "delivered", claim.attempts) for claim in claims]


def take_refundable(claims: WorkerClaims) -> list[ClaimedMessage]:
    """Take the claims whose attempts can be refunded now, as the claimer does."""
    return claims.refunds.take_refundable(claims.unrecorded)


def test_only_claimed_messages_are_stopped_by_opt_outs_until_they_are_recorded(
    claims: WorkerClaims,
) -> None:
    first, second = create_claim(1), create_claim(2)
    claims.add([first, second])
    claims.stop_opted_out(frozenset({1, 3}))
    assert claims.opted_out == {1}
    claims.forget(delivered(first))
    assert claims.opted_out == set()


def test_message_is_unrecorded_until_its_result_is_written(claims: WorkerClaims) -> None:
    first, second = create_claim(1), create_claim(2)
    claims.add([first, second])
    assert claims.unrecorded == {1, 2}
    lost = claims.forget_written(delivered(first), stored_ids={1})
    assert lost == []
    assert claims.unrecorded == {2}


def test_discarded_result_leaves_a_newer_claim_of_the_message_unrecorded(
    claims: WorkerClaims,
) -> None:
    discarded, newer = create_claim(1), create_claim(1, attempts=2)
    claims.add([discarded])
    claims.add([newer])
    assert claims.forget_written(delivered(discarded), stored_ids=set()) == [discarded]
    assert claims.unrecorded == {1}
    claims.forget_written(delivered(newer), stored_ids={1})
    assert claims.unrecorded == set()


def test_attempt_is_refunded_once_its_result_is_written(claims: WorkerClaims) -> None:
    failed = create_claim(1)
    claims.add([failed])
    claims.refunds.record_failure("channel", failed, failed_at=1)
    claims.refunds.confirm_outage("channel")
    assert take_refundable(claims) == []
    claims.forget_written(delivered(failed), stored_ids={1})
    assert take_refundable(claims) == [failed]


@pytest.mark.parametrize("is_outage_confirmed_before", [True, False])
def test_attempt_is_not_refunded_after_the_lease_was_lost(
    claims: WorkerClaims, *, is_outage_confirmed_before: bool
) -> None:
    kept, lost = create_claim(1), create_claim(2)
    claims.add([kept, lost])
    for claim in (kept, lost):
        claims.refunds.record_failure("channel", claim, failed_at=1)
    if is_outage_confirmed_before:
        claims.refunds.confirm_outage("channel")
    assert claims.forget_written(delivered(kept, lost), stored_ids={kept.id}) == [lost]
    claims.refunds.confirm_outage("channel")
    assert take_refundable(claims) == [kept]
