"""What a receipt changes in a message, in every state and order."""

from datetime import UTC, datetime
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mailer.gateway.callback import Receipt, ReceiptStatus
from mailer.receipt.decision import MAX_RECEIPTS, MessageState, apply_receipt, must_wait
from mailer.statuses import MESSAGE_STATUSES, MessageStatus

NOW = datetime(2030, 1, 15, tzinfo=UTC)
SENT = MessageState(1, 1, "sent", gateway="main", gateway_message_id="m1", parts=1)

receipts = st.builds(
    Receipt,
    st.sampled_from(["delivered", "sent", "failed", "expired", "unknown"]),
    code=st.none() | st.sampled_from(["0", "30003"]),
    gateway_message_id=st.none() | st.sampled_from(["m1", "m0"]),
)


def after(message: MessageState, *received: Receipt, gateway: str = "main") -> MessageState:
    for receipt in received:
        message = apply_receipt(message, receipt, gateway, NOW)
    return message


@pytest.mark.parametrize(
    ("status", "receipt", "expected", "reason"),
    [
        ("sent", "delivered", "delivered", None),
        ("sent", "sent", "sent", None),
        ("sent", "failed", "undelivered", "not_delivered"),
        ("sent", "expired", "undelivered", "validity_expired"),
        ("sent", "unknown", "sent", None),
        ("delivered", "failed", "delivered", None),
        ("delivered", "sent", "delivered", None),
        ("undelivered", "delivered", "delivered", None),
        ("undelivered", "sent", "undelivered", None),
        ("cancelled", "delivered", "delivered", None),
        ("cancelled", "failed", "cancelled", None),
        ("unknown", "delivered", "delivered", None),
        ("unknown", "failed", "undelivered", "not_delivered"),
        ("unknown", "sent", "sent", None),
        ("unknown", "unknown", "unknown", None),
        ("scheduled", "delivered", "delivered", None),
        ("scheduled", "failed", "scheduled", None),
        ("scheduled", "sent", "scheduled", None),
    ],
)
def test_receipt_changes_a_status_only_to_one_that_says_more(
    status: MessageStatus, receipt: ReceiptStatus, expected: MessageStatus, reason: str | None
) -> None:
    message = after(MessageState(1, 1, status, gateway="main"), Receipt(receipt))
    assert (message.status, message.reason) == (expected, reason)


@pytest.mark.parametrize(
    ("receipt", "expected"),
    [("delivered", "delivered"), ("failed", "undelivered"), ("sent", "sent")],
)
def test_message_with_delivery_unknown_is_not_sent_again_after_a_receipt(
    receipt: ReceiptStatus, expected: MessageStatus
) -> None:
    waiting = MessageState(1, 1, "scheduled", unknown_reason="timeout", gateway="main")
    assert after(waiting, Receipt(receipt)).status == expected


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (["sent"], "sent"),
        (["sent", "delivered"], "delivered"),
        (["delivered", "sent"], "delivered"),
        (["delivered", "failed"], "delivered"),
        (["failed", "sent"], "undelivered"),
        (["failed", "delivered"], "delivered"),
        (["unknown"], None),
    ],
)
def test_receipts_before_the_result_are_kept_beside_the_claim(
    received: list[ReceiptStatus], expected: str | None
) -> None:
    sending = MessageState(1, 1, "sending", gateway="main")
    message = after(sending, *map(Receipt, received))
    assert (message.status, message.receipt_status) == ("sending", expected)


def test_code_of_a_failure_is_in_the_reason() -> None:
    assert after(SENT, Receipt("failed", code="30003")).reason == "not_delivered_30003"
    assert after(SENT, Receipt("failed", code="0")).reason == "not_delivered"
    assert after(SENT, Receipt("failed", code="no such\nnumber")).reason == "not_delivered"


def test_failure_of_an_attempt_before_the_last_one_does_not_count() -> None:
    assert after(SENT, Receipt("failed", gateway_message_id="m0")).status == "sent"
    assert after(SENT, Receipt("failed", gateway_message_id="m1")).status == "undelivered"
    assert after(SENT, Receipt("failed"), gateway="other").status == "sent"
    assert after(SENT, Receipt("delivered", gateway_message_id="m0")).status == "delivered"


def test_receipt_of_an_earlier_attempt_does_not_resolve_an_unknown_delivery() -> None:
    """The last attempt has no id; the stored one is of an attempt that a user has repeated."""
    unknown = MessageState(
        1, 1, "unknown", unknown_reason="timeout", gateway="main", gateway_message_id="m0"
    )
    assert after(unknown, Receipt("sent", gateway_message_id="m0")).status == "unknown"
    assert after(unknown, Receipt("failed", gateway_message_id="m0")).status == "unknown"
    assert after(unknown, Receipt("sent"), gateway="other").status == "unknown"
    assert after(unknown, Receipt("sent", gateway_message_id="m1")).status == "sent"
    assert after(unknown, Receipt("delivered", gateway_message_id="m0")).status == "delivered"


@pytest.mark.parametrize("order", list(permutations(["p1", "p2", "p3"])))
def test_message_of_several_parts_is_delivered_when_all_are(order: tuple[str, ...]) -> None:
    message = MessageState(1, 1, "sent", gateway="main", gateway_message_id="p1,p2,p3", parts=3)
    statuses = []
    for part in order:
        message = after(
            message,
            Receipt("delivered", gateway_message_id=part, part=part),
            Receipt("delivered", gateway_message_id=part, part=part),
        )
        statuses.append(message.status)
    assert statuses == ["sent", "sent", "delivered"]


@pytest.mark.parametrize("order", list(permutations(["sent", "delivered", "delivered"])))
def test_part_stays_delivered_whatever_its_other_receipts_say(
    order: tuple[ReceiptStatus, ...],
) -> None:
    message = MessageState(1, 1, "sent", gateway="main", gateway_message_id="p1,p2", parts=2)
    message = after(message, Receipt("delivered", gateway_message_id="p2", part="p2"))
    first = [Receipt(status, gateway_message_id="p1", part="p1") for status in order]
    assert after(message, *first, Receipt("sent", part="p2")).status == "delivered"


def test_longest_text_is_delivered_when_all_its_parts_are() -> None:
    parts = [f"p{number}" for number in range(48)]
    message = MessageState(1, 1, "sent", gateway="main", gateway_message_id=",".join(parts))
    message = replace(message, parts=len(parts))
    for status in ("delivered", "unknown", "sent"):
        message = after(
            message,
            *(Receipt(status, code=code, part=part) for part in parts for code in "12"),
        )
    assert message.status == "delivered"
    assert len(message.receipts) == MAX_RECEIPTS


def test_failed_part_fails_the_message_until_that_part_is_delivered_too() -> None:
    two_parts = MessageState(1, 1, "sent", gateway="main", gateway_message_id="p1,p2", parts=2)
    first = Receipt("delivered", gateway_message_id="p1", part="p1")
    second = Receipt("failed", gateway_message_id="p2", part="p2")
    assert after(two_parts, first, second).status == "undelivered"
    assert after(two_parts, second, first).status == "undelivered"
    late = Receipt("delivered", gateway_message_id="p2", part="p2")
    assert after(two_parts, first, second, late).status == "delivered"


def test_receipt_of_a_part_waits_until_the_number_of_parts_is_stored() -> None:
    part = Receipt("delivered", part="p1")
    assert must_wait(MessageState(1, 1, "sending"), part)
    assert not must_wait(SENT, part)
    assert not must_wait(MessageState(1, 1, "sending"), Receipt("delivered"))


def test_failure_waits_while_a_message_that_was_accepted_before_is_sent_again() -> None:
    again = replace(SENT, status="sending")
    assert must_wait(again, Receipt("failed", gateway_message_id="m1"))
    assert not must_wait(again, Receipt("delivered", gateway_message_id="m1"))
    assert not must_wait(replace(again, gateway_message_id=None), Receipt("failed"))


@given(st.sampled_from(MESSAGE_STATUSES), st.lists(receipts, max_size=8))
def test_repeated_receipts_change_nothing(status: MessageStatus, received: list[Receipt]) -> None:
    start = MessageState(1, 1, status, gateway="main", gateway_message_id="m1")
    message = after(start, *received)
    assert after(message, *received) == message


@given(st.sampled_from(MESSAGE_STATUSES), st.lists(receipts, max_size=6), st.randoms())
def test_delivered_message_stays_delivered_in_every_order(
    status: MessageStatus, received: list[Receipt], rng: object
) -> None:
    received = [*received, Receipt("delivered")]
    rng.shuffle(received)  # type: ignore[attr-defined]  # random.Random
    message = after(MessageState(1, 1, status, gateway="main"), *received)
    assert "delivered" in {message.status, message.receipt_status}


@given(st.lists(receipts, min_size=1, max_size=60))
def test_history_keeps_the_newest_receipts(received: list[Receipt]) -> None:
    history = after(SENT, *received).receipts
    assert 1 <= len(history) <= MAX_RECEIPTS
