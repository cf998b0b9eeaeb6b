"""The sandbox gateway's calls to mailer: what it sends is read as what it meant."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer.gateway.callback import Callback, CallbackContent, ReceiptStatus, Reply
from mailer.gateway.config import ConfiguredGateway, read_gateways
from mailer.gateway.poll_rules import PolledMessage
from mailer.gateway.profile_file import load_profile, shipped_kinds
from mailer.gateway.sandbox import CallOptions, Faults, SandboxGateway
from mailer.gateway.sandbox_options import CallContent
from mailer.gateway.sandbox_plans import (
    REPLIES,
    STOP_REPLIES,
    CallPlan,
    CallPlanner,
    PlannedCall,
    find_part_id,
    find_reply_url,
    message_values,
)
from mailer.gateway.sandbox_records import SandboxMessage
from mailer.gateway.sandbox_reports import Signer
from mailer.gateway.sandbox_responses import SandboxResponses, load_samples
from mailer.reply.rules import ReplyRules
from mailer.settings import Settings

profile_of, samples_of = cache(load_profile), cache(load_samples)

SECRET = "sandbox-callback-secret"  # noqa: S105  # of a test
PUBLIC_URL = "https://m.example"
NEW_ID = 1_893_553_445_000_000
STATUSES: tuple[ReceiptStatus, ...] = get_args(ReceiptStatus)
KINDS = [kind for kind in shipped_kinds() if profile_of(kind).receipt is not None]
REPLYING = [kind for kind in KINDS if profile_of(kind).reply is not None]
POLLED = [kind for kind in shipped_kinds() if profile_of(kind).poll is not None]
IN_PARTS = ["plivo", "vonage"]
SAMPLES = [
    (kind, status, index)
    for kind in KINDS
    for status in STATUSES
    for index in range(len(samples_of(kind).call.named(status)))
]
LONG = "Скидка до 50%. " * 10


@cache
def gateway_of(kind: str, secret: str | None = SECRET) -> ConfiguredGateway:
    """Return mailer's configuration of a sandbox gateway."""
    sandbox = SandboxGateway(Faults(), kind=kind, calls=CallOptions(callback_secret=secret))
    with TemporaryDirectory() as folder:
        file = Path(folder, "gateways.toml")
        file.write_text(sandbox.gateway_table("main", "http://127.0.0.1:1"), encoding="utf-8")
        [gateway] = read_gateways(file, {})
    return gateway


def message_of(kind: str, gateway: ConfiguredGateway | None, text: str = "Hi") -> SandboxMessage:
    """Return a message as the sandbox reads it from a request."""
    url = gateway.callback_url(PUBLIC_URL) if gateway is not None else f"{PUBLIC_URL}/?message="
    own_id = None if kind in {"twilio", "kannel", "jasmin", "smsru", "smsaero", "telnyx"} else 12
    return SandboxMessage(
        id=own_id, phone=79161234567, text=text, sender="1008", callback=f"{url}12" if url else ""
    )


def planner_of(kind: str, options: CallOptions) -> CallPlanner:
    source = random.Random(1)  # noqa: S311  # to be repeatable, not secret
    return CallPlanner(profile_of(kind), samples_of(kind).call, options, source)


def planned(kind: str, *, text: str = "Hi", **options: float | str) -> CallPlan:
    """Return the plan for a message."""
    fields = {"receipts_url": f"{PUBLIC_URL}/gateways/main/receipts", **options}
    chosen: CallOptions = msgspec.convert(fields, CallOptions)
    message = msgspec.structs.replace(message_of(kind, None, text), callback="")
    return planner_of(kind, chosen).plan(message, NEW_ID)


def contents(calls: list[PlannedCall]) -> list[str]:
    return [call.content for call in calls]


def read(gateway: ConfiguredGateway, callback: Callback) -> CallbackContent:
    """Return what mailer reads of a call, which it must accept as the provider's."""
    assert gateway.authenticates(callback, datetime.now(UTC))
    return gateway.callback_rules().read(callback)


def signed(kind: str, callback: Callback, token: str | None = None) -> Callback:
    return Signer(profile_of(kind), SECRET if token is None else None, token).sign(callback)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_samples_of_what_its_provider_sends(kind: str) -> None:
    samples, profile = samples_of(kind).call, profile_of(kind)
    assert samples.sent
    assert samples.delivered
    assert samples.failed
    assert bool(samples.reply) == (profile.reply is not None)


@pytest.mark.parametrize("kind", sorted({*shipped_kinds()} - {*KINDS}))
def test_kind_without_receipts_has_no_samples_of_calls(kind: str) -> None:
    samples = samples_of(kind).call
    assert not samples.reply
    assert not any(samples.named(status) for status in STATUSES)
    assert planned(kind).calls == []


@pytest.mark.parametrize(("kind", "status", "index"), SAMPLES)
def test_receipt_is_authentic_and_read_as_it_was_meant(
    kind: str, status: ReceiptStatus, index: int
) -> None:
    gateway = gateway_of(kind)
    message = message_of(kind, gateway)
    sample = samples_of(kind).call.named(status)[index]
    url = message.callback or f"{PUBLIC_URL}/gateways/main/receipts"
    call = sample.fill(url, message_values(message, NEW_ID))
    content = read(gateway, signed(kind, call))
    [receipt] = content.receipts
    assert content.replies == []
    assert receipt.status == status
    assert receipt.message_id == (None if kind in {"smsru", "textbee"} else 12)
    assert receipt.part == (find_part_id(NEW_ID, 1) if kind in IN_PARTS else None)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"json", "kannel"}])
def test_receipt_has_the_id_that_the_gateway_gave_to_the_message(kind: str) -> None:
    gateway = gateway_of(kind)
    responses = SandboxResponses(kind, random.Random(1))  # noqa: S311  # not secret
    message = msgspec.structs.replace(message_of(kind, gateway), id=12)
    response = responses.accept(message, is_repeat=False)
    body, given = response.body.decode(), set()
    for sample in samples_of(kind).call.delivered:
        url = message.callback or f"{PUBLIC_URL}/gateways/main/receipts"
        call = sample.fill(url, message_values(message, response.new_id))
        given |= {each.gateway_message_id for each in read(gateway, signed(kind, call)).receipts}
    assert all(each is not None and each in body for each in given)


@pytest.mark.parametrize("kind", ["plivo", "smsru", "twilio"])
def test_calls_are_signed_with_the_token_of_the_account_without_a_secret(kind: str) -> None:
    gateway = gateway_of(kind, secret=None)
    url = f"{PUBLIC_URL}/gateways/main/receipts?message=12"
    call = samples_of(kind).call.delivered[0].fill(url, message_values(message_of(kind, None), 1))
    assert gateway.authenticates(signed(kind, call, token="sandbox"), datetime.now(UTC))  # noqa: S106  # of a test
    assert not gateway.authenticates(signed(kind, call, token="other"), datetime.now(UTC))  # noqa: S106  # of a test


def reader_of_replies(kind: str) -> Callable[[str], list[Reply]]:
    """Return a function that sends a reply with a text, and returns what mailer reads of it."""
    gateway, planner = gateway_of(kind), planner_of(kind, CallOptions())
    message, rules = message_of(kind, gateway), gateway.callback_rules()
    signer = Signer(profile_of(kind), SECRET, None)
    url = find_reply_url(message.callback) or f"{PUBLIC_URL}/gateways/main/inbound"

    def send(text: str) -> list[Reply]:
        calls = [signer.sign(call) for call in planner.create_reply(message, text, url)]
        assert all(gateway.authenticates(call, datetime.now(UTC)) for call in calls)
        return [reply for call in calls for reply in rules.read(call).replies]

    return send


@pytest.mark.parametrize("kind", REPLYING)
@pytest.mark.parametrize("text", [*REPLIES, *STOP_REPLIES])
def test_reply_is_authentic_and_read_as_it_was_written(kind: str, text: str) -> None:
    replies = reader_of_replies(kind)(text)
    expected = text.replace("👍", "?") if kind == "smsc" else text
    assert "".join(reply.text for reply in replies) == expected
    assert {reply.phone for reply in replies} == {"79161234567"}
    assert {reply.recipient for reply in replies} <= {"1008", None}
    assert all(reply.id is not None for reply in replies)
    if kind == "vonage" and len(text) > 70:
        assert [(reply.part, reply.parts) for reply in replies] == [(1, 2), (2, 2)]
        assert len({reply.reference for reply in replies}) == 1
    else:
        assert len(replies) == 1


@pytest.mark.parametrize("kind", sorted({*REPLYING} - {"smsc", "jasmin"}))
def test_reply_of_any_text_is_read_as_it_was_written(kind: str) -> None:
    send = reader_of_replies(kind)

    @given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60))
    def check(text: str) -> None:
        assert "".join(reply.text for reply in send(text)) == text

    check()


@pytest.mark.parametrize(
    ("url", "reply_url"),
    [
        ("http://m/gateways/a/receipts?message=12", "http://m/gateways/a/inbound"),
        (
            "http://m/gateways/a/receipts?secret=s&message=12",
            "http://m/gateways/a/inbound?secret=s",
        ),
        ("http://m/own?x=1&message=12", "http://m/own?x=1"),
    ],
)
def test_url_for_replies_is_that_for_receipts_without_the_message(url: str, reply_url: str) -> None:
    assert find_reply_url(url) == reply_url


# Plans


@pytest.mark.parametrize("kind", KINDS)
def test_message_is_reported_as_sent_and_then_as_delivered(kind: str) -> None:
    plan = planned(kind, receipt_delay=5.0)
    assert contents(plan.calls) == ["sent", "delivered"]
    assert 0 < plan.calls[0].delay < plan.calls[1].delay == plan.delay
    assert plan.status == "delivered"


def test_request_without_a_url_gets_no_calls() -> None:
    message = SandboxMessage(id=1, phone=79161234567, text="Hi")
    plan = planner_of("twilio", CallOptions(reply_share=1.0)).plan(message, NEW_ID)
    assert plan.calls == []


def test_url_of_the_request_comes_before_that_of_the_options() -> None:
    options = CallOptions(receipts_url=f"{PUBLIC_URL}/other", reply_share=1.0)
    message = message_of("twilio", None)
    urls = [call.callback.url for call in planner_of("twilio", options).plan(message, 1).calls]
    assert urls == [message.callback, message.callback, f"{PUBLIC_URL}/other"]


def test_failed_message_is_reported_as_failed_or_expired() -> None:
    plan = planned("sinch", receipt_failed=1.0)
    assert contents(plan.calls) == ["sent", "failed"]
    assert plan.status == "failed"


@pytest.mark.parametrize("kind", IN_PARTS)
@pytest.mark.parametrize(
    ("failed", "finals"), [(0.0, ["delivered"] * 3), (1.0, ["failed", "delivered", "delivered"])]
)
def test_each_part_has_its_receipts_and_the_first_one_fails(
    kind: str, failed: float, finals: list[str]
) -> None:
    calls = planned(kind, text=LONG, receipt_failed=failed).calls
    decisive = [call for call in calls if call.content != "sent"]
    assert [call.content for call in decisive] == finals
    assert [call.part for call in decisive] == [1, 2, 3]
    assert len(calls) == 6


def test_other_kinds_report_a_long_message_once() -> None:
    assert contents(planned("sinch", text=LONG).calls) == ["sent", "delivered"]


def test_lost_receipts_are_counted_and_not_sent() -> None:
    plan = planned("twilio", receipt_loss=1.0)
    assert (plan.calls, plan.lost, plan.status) == ([], 2, "sent")


def test_repeated_receipts_are_sent_twice() -> None:
    calls = planned("twilio", receipt_repeat=1.0, receipt_delay=5.0).calls
    assert sorted(contents(calls)) == ["delivered", "delivered", "sent", "sent"]
    assert sum(call.is_repeat for call in calls) == 2


def test_disorder_puts_the_decisive_receipt_first() -> None:
    calls = planned("twilio", receipt_disorder=1.0, receipt_delay=5.0).calls
    assert contents(calls) == ["delivered", "sent"]


def test_early_receipts_have_no_delay_but_replies_and_repeats_do() -> None:
    calls = planned(
        "twilio", receipt_early=1.0, receipt_repeat=1.0, reply_share=1.0, receipt_delay=5.0
    ).calls
    early = [call for call in calls if call.is_early]
    assert contents(early) == ["sent", "delivered"]
    assert {call.delay for call in early} == {0.0}
    assert all(call.delay > 0 for call in calls if not call.is_early)
    assert len(calls) == 5


@pytest.mark.parametrize("stop_share", [0.0, 1.0])
def test_share_of_replies_is_a_stop_word(stop_share: float) -> None:
    calls = planned("twilio", reply_share=1.0, stop_share=stop_share).calls
    reply = calls[-1]
    [text] = [
        each.text for each in gateway_of("twilio").callback_rules().read(reply.callback).replies
    ]
    assert text in (STOP_REPLIES if stop_share else REPLIES)
    assert reply.is_stop == bool(stop_share)
    assert reply.message_id is None or reply.message_id == 12


def test_stop_words_of_the_sandbox_are_stop_words_of_mailer() -> None:
    rules = ReplyRules.of(Settings(auth="none"))
    assert {rules.action_of(text) for text in STOP_REPLIES} == {"opted_out"}
    assert {rules.action_of(text) for text in REPLIES} == {None}


def test_shares_happen_as_often_as_they_say() -> None:
    planner = planner_of("twilio", CallOptions(receipt_failed=0.25, receipts_url=PUBLIC_URL))
    message = message_of("twilio", None)
    failed = sum(planner.plan(message, 1).status == "failed" for _ in range(2_000))
    assert failed == pytest.approx(500, abs=80)


# Polls


@pytest.mark.parametrize("kind", POLLED)
@pytest.mark.parametrize("status", ["sent", "delivered", "failed"])
def test_response_to_a_poll_is_read_as_it_was_meant(kind: str, status: ReceiptStatus) -> None:
    gateway = gateway_of(kind)
    rules = gateway.poll_rules({})
    assert rules is not None
    responses = SandboxResponses(kind, random.Random(1))  # noqa: S311  # not secret
    message = SandboxMessage(id=12, phone=79161234567, text="Hi")
    values = message_values(message, NEW_ID)
    response = responses.answer_poll([(status, values)])
    asked = [PolledMessage(12, gateway_id_of(kind, NEW_ID), "79161234567")]
    [receipt] = rules.read(response.body, asked)
    assert (receipt.status, receipt.message_id) == (status, 12)
    assert response.kind == "poll"


def gateway_id_of(kind: str, new_id: int) -> str:
    """Return the id that a polled gateway gives to the message 12."""
    return {"android": "12", "smsc": "12", "smsru": f"000000-{new_id}"}.get(kind, str(new_id))


def test_poll_for_several_messages_has_an_entry_for_each() -> None:
    gateway = gateway_of("smsru")
    rules = gateway.poll_rules({})
    assert rules is not None
    responses = SandboxResponses("smsru", random.Random(1))  # noqa: S311  # not secret
    message = SandboxMessage(phone=79161234567, text="Hi")
    statuses: tuple[CallContent, ...] = ("sent", "delivered", "failed")
    found = [(status, message_values(message, n)) for n, status in enumerate(statuses, 1)]
    asked = [PolledMessage(n, f"000000-{n}", "79161234567") for n in (1, 2, 3)]
    receipts = rules.read(responses.answer_poll(found).body, asked)
    assert [(each.message_id, each.status) for each in receipts] == [
        (1, "sent"),
        (2, "delivered"),
        (3, "failed"),
    ]


def test_options_show_no_secret() -> None:
    assert SECRET not in repr(CallOptions(callback_secret=SECRET))
