"""Answers to replies are sent soon, once, through the gateway and from the sender of the reply."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import (
    HOUR,
    add_clients,
    add_mailing,
    add_messages,
    channel_of,
    do,
    execute,
    rows,
    value,
)
from tests.fault_servers import (
    AcceptingServer,
    SilentServer,
    gateway_at,
    http_response,
    read_request,
    served,
)

from mailer import metrics
from mailer.access.model import COMMAND_LINE
from mailer.clock import database_clock, elapsed
from mailer.dispatch.answer_sender import AnswerSender, decide_result
from mailer.dispatch.attempt_refunds import AttemptRefunds
from mailer.dispatch.send_policy import RetryPolicy
from mailer.erasure import erase_client
from mailer.gateway.callback import Reply
from mailer.gateway.channel import Channel, Channels
from mailer.gateway.protocol import (
    Aborted,
    Accepted,
    Outcome,
    Rejected,
    TemporaryFailure,
    Unknown,
)
from mailer.reply import outbox, reading, service, store
from mailer.reply.model import NewAnswer, ReplyErasedError, ReplyGatewayError
from mailer.reply.outbox import ClaimedAnswer
from mailer.reply.rules import ReplyRules
from mailer.settings import Settings

PHONE = "79990000000"
RULES = ReplyRules.of(Settings(opt_out_text="You are unsubscribed."))
POLICY = RetryPolicy(attempts=2, base=0.01, cap=0.01)


def channel_to(url: str, **settings: Any) -> Channel:
    """Return the channel of the gateway `main` at a URL."""
    limits = Settings(gateway_url=url, **settings)
    return channel_of(gateway_at(url), limits, name="main", sender="Acme")


@asynccontextmanager
async def sending(engine: AsyncEngine, *channels: Channel, grace: float = 5) -> AsyncIterator[None]:
    """Send answers while the block lasts."""
    sender = AnswerSender(engine, Channels(channels), AttemptRefunds(), POLICY, grace)
    task = asyncio.create_task(sender.run())
    try:
        yield
    finally:
        sender.stop()
        await task


async def add_answer(engine: AsyncEngine, text: str = "At nine.") -> int:
    """Add a reply through `main` and an answer to it; return the answer's id."""
    await do(
        engine,
        lambda db: store.add_replies(
            db, "main", [Reply(PHONE, "When?", "1500")], datetime.now(UTC), RULES
        ),
    )
    reply_id = await value(engine, "SELECT max(id) FROM reply")
    channels = Channels([channel_to("http://127.0.0.1:9/")])
    created = await service.create_answer(
        engine, channels, reply_id, NewAnswer(text=text), COMMAND_LINE
    )
    return created.id


async def until_status(engine: AsyncEngine, answer_id: int, *expected: str) -> dict[str, Any]:
    """Wait until an answer has one of these statuses; return its row."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        while True:
            [row] = await rows(engine, f"SELECT * FROM answer WHERE id = {answer_id}")  # noqa: S608  # a number
            if row["status"] in expected:
                return dict(row)
            await asyncio.sleep(0.02)


async def test_an_answer_is_sent_once_and_its_result_recorded(engine: AsyncEngine) -> None:
    answer_id = await add_answer(engine, "Since 9:00 ✓")
    server = AcceptingServer()
    async with served(server.talk) as url, sending(engine, channel_to(url)):
        answer = await until_status(engine, answer_id, "accepted")
        await add_answer(engine, "Another one")
        async with asyncio.timeout(EVENT_TIMEOUT):
            while len(server.requests) < 2:
                await asyncio.sleep(0.02)
    assert answer["attempts"] == 1
    assert answer["parts"] == 1
    assert server.counts_by_message[answer_id] == 1
    assert await value(engine, "SELECT count(*) FROM reply WHERE read_at IS NULL") == 0


async def test_recorded_answers_are_counted(engine: AsyncEngine) -> None:
    labels = {"gateway": "main", "status": "accepted"}
    before = metrics.REGISTRY.get_sample_value("mailer_answers_total", labels) or 0.0
    answer_id = await add_answer(engine)
    async with served(AcceptingServer().talk) as url, sending(engine, channel_to(url)):
        await until_status(engine, answer_id, "accepted")
    assert metrics.REGISTRY.get_sample_value("mailer_answers_total", labels) == before + 1


async def test_the_id_of_an_answer_is_that_of_no_message(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 3)
    mailing_id = await add_mailing(engine, clients=3)
    await add_messages(engine, mailing_id, clients[:1], "delivered")
    first = await add_answer(engine)
    await add_messages(engine, mailing_id, clients[1:2], "delivered")
    second = await add_answer(engine)
    await add_messages(engine, mailing_id, clients[2:], "delivered")
    ids = [row["id"] for row in await rows(engine, "SELECT id FROM message ORDER BY id")]
    assert sorted([*ids, first, second]) == [ids[0], first, ids[1], second, ids[2]]


@pytest.mark.parametrize(
    ("response", "status", "reason", "requests"),
    [
        (http_response(400), "failed", "rejected_400", 1),
        (http_response(503), "failed", "http_503", 2),
        (http_response(200, b"?"), "failed", "bad_response", 2),
    ],
)
async def test_a_refused_answer_has_failed_and_a_temporary_failure_is_tried_again(
    engine: AsyncEngine, response: bytes, status: str, reason: str, requests: int
) -> None:
    answer_id = await add_answer(engine)
    received = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append((await read_request(reader)).message_id)
        writer.write(response)
        await writer.drain()

    async with served(talk) as url, sending(engine, channel_to(url)):
        answer = await until_status(engine, answer_id, status)
    assert answer["reason"] == reason
    assert received == [answer_id] * requests


async def test_an_answer_of_which_delivery_is_unknown_is_never_sent_again(
    engine: AsyncEngine,
) -> None:
    answer_id = await add_answer(engine)
    server = SilentServer()
    async with (
        served(server.talk) as url,
        sending(engine, channel_to(url, gateway_timeout=0.3)),
    ):
        answer = await until_status(engine, answer_id, "unknown")
        assert answer["reason"] == "timeout"
        await asyncio.sleep(1.5)  # longer than between two claims
    assert (await until_status(engine, answer_id, "unknown"))["attempts"] == 1


async def test_an_answer_whose_worker_stopped_is_unknown_and_never_sent_again(
    engine: AsyncEngine,
) -> None:
    answer_id = await add_answer(engine)
    server = SilentServer()
    async with served(server.talk) as url:
        sender = AnswerSender(
            engine, Channels([channel_to(url)]), AttemptRefunds(), POLICY, grace=5
        )
        task = asyncio.create_task(sender.run())
        await until_status(engine, answer_id, "sending")
        task.cancel()  # as if the process were killed: nothing is recorded
        await asyncio.gather(task, return_exceptions=True)
    await execute(engine, "UPDATE answer SET lease_expires_at = now() - interval '1 second'")
    await do(engine, lambda db: outbox.end_overdue(db, 100))
    accepting = AcceptingServer()
    async with served(accepting.talk) as url, sending(engine, channel_to(url)):
        other_id = await add_answer(engine)
        await until_status(engine, other_id, "accepted")
    assert list(accepting.counts_by_message) == [other_id]
    answer = await until_status(engine, answer_id, "unknown")
    assert (answer["reason"], answer["lease_owner"]) == ("lease_expired", None)


async def test_a_stop_waits_for_requests_in_flight_until_the_grace_is_over(
    engine: AsyncEngine,
) -> None:
    answer_id = await add_answer(engine)
    server = SilentServer()
    async with served(server.talk) as url, sending(engine, channel_to(url), grace=0.1):
        await until_status(engine, answer_id, "sending")
        await asyncio.wait_for(server.has_received.wait(), EVENT_TIMEOUT)
    answer = await until_status(engine, answer_id, "unknown")
    assert answer["reason"] == "connection_lost"


async def test_two_workers_send_each_answer_once(engine: AsyncEngine) -> None:
    ids = [await add_answer(engine) for _ in range(30)]
    server = AcceptingServer()
    async with (
        served(server.talk) as url,
        sending(engine, channel_to(url)),
        sending(engine, channel_to(url)),
    ):
        for answer_id in ids:
            await until_status(engine, answer_id, "accepted")
    assert dict(server.counts_by_message) == dict.fromkeys(ids, 1)


async def test_answers_wait_for_a_paused_gateway_and_an_unconfigured_one(
    engine: AsyncEngine,
) -> None:
    answer_id = await add_answer(engine)
    server = AcceptingServer()
    async with served(server.talk) as url:
        channel = channel_to(url)
        async with sending(engine):
            await asyncio.sleep(0.1)
        async with sending(engine, channel):
            channel.pauses = {channel.name: datetime.now(UTC)}
            await asyncio.sleep(1.2)  # longer than between two claims
            assert (await until_status(engine, answer_id, "waiting"))["attempts"] == 0
            channel.pauses = {}
            await until_status(engine, answer_id, "accepted")
    assert server.counts_by_message[answer_id] == 1


async def test_answers_wait_while_the_breaker_is_open_and_one_probes(engine: AsyncEngine) -> None:
    ids = [await add_answer(engine) for _ in range(3)]
    server = AcceptingServer()
    async with served(server.talk) as url:
        channel = channel_to(url, breaker_reset=0.5)
        failure = TemporaryFailure("http_503", affects_all=True)
        now = elapsed()
        channel.breaker.record(
            channel.breaker.acquire(now) or 0, failure, now, database_clock.at(now)
        )
        async with sending(engine, channel):
            for answer_id in ids:
                await until_status(engine, answer_id, "accepted")
    assert channel.breaker.state == "closed"
    assert dict(server.counts_by_message) == dict.fromkeys(ids, 1)


async def test_an_answer_expires_after_a_day(engine: AsyncEngine) -> None:
    expired, fresh = await add_answer(engine), await add_answer(engine)
    await execute(
        engine,
        f"UPDATE answer SET created_at = now() - interval '25 hours' WHERE id = {expired}",  # noqa: S608  # a number
        f"UPDATE answer SET created_at = now() - interval '23 hours' WHERE id = {fresh}",  # noqa: S608  # a number
    )
    await do(engine, lambda db: outbox.end_overdue(db, 100))
    assert (await until_status(engine, expired, "failed"))["reason"] == "expired"
    await until_status(engine, fresh, "waiting")


async def test_a_restored_database_sends_no_answer_of_before(engine: AsyncEngine) -> None:
    before = await add_answer(engine)
    await execute(engine, "UPDATE origin SET held_since = clock_timestamp()")
    after = await add_answer(engine)
    assert await do(engine, outbox.find_due) == []
    await do(engine, lambda db: outbox.end_overdue(db, 100))
    assert (await until_status(engine, before, "unknown"))["reason"] == "restored"
    await until_status(engine, after, "waiting")


async def test_a_text_of_too_many_parts_is_not_sent(engine: AsyncEngine) -> None:
    answer_id = await add_answer(engine, "long " * 100)
    server = AcceptingServer()
    async with served(server.talk) as url:
        channel = channel_to(url)
        channel.limits = replace(channel.limits, parts=1)
        async with sending(engine, channel):
            answer = await until_status(engine, answer_id, "failed")
    assert answer["reason"] == "too_many_parts"
    assert server.requests == []


async def test_answers_go_from_the_sender_to_which_the_client_replied(engine: AsyncEngine) -> None:
    [client_id] = await add_clients(engine, 1)
    phone = await value(engine, "SELECT phone FROM client")
    now = datetime.now(UTC)
    mailing_id = await add_mailing(engine, clients=1, start=now - HOUR)
    await add_messages(engine, mailing_id, [client_id], "delivered", at=now - HOUR)
    await execute(
        engine, "UPDATE message SET gateway = 'main'", "UPDATE mailing SET sender = '+1500'"
    )
    replies = [Reply(phone, "STOP", "1500"), Reply(phone, "Hi", "Acme")]
    await do(engine, lambda db: store.add_replies(db, "main", replies, now, RULES))
    claimed = await do(engine, lambda db: outbox.claim(db, "main", uuid4(), HOUR, 10))
    assert [(each.recipient, each.mailing_sender) for each in claimed] == [("1500", "+1500")]


@pytest.mark.parametrize(
    ("outcome", "is_gateway_failure", "expected"),
    [
        (Accepted("SM1"), False, ("accepted", 2, None)),
        (Rejected("rejected_400"), False, ("failed", 2, "rejected_400")),
        (Rejected("x", other_gateways=True), False, ("failed", 2, "x")),
        (Unknown("timeout"), False, ("unknown", 2, "timeout")),
        (Unknown("timeout"), True, ("unknown", 2, "timeout")),
        (Aborted(), False, ("waiting", 1, None)),
        (TemporaryFailure("http_500"), False, ("failed", 2, "http_500")),
        (TemporaryFailure("http_500"), True, ("waiting", 1, "http_500")),
    ],
)
def test_the_outcome_decides_the_result(
    outcome: Outcome, expected: tuple[str, int, str | None], *, is_gateway_failure: bool
) -> None:
    answer = ClaimedAnswer(1, 2, "main", PHONE, "Hi", None, None)
    result = decide_result(answer, outcome, 1, POLICY, is_gateway_failure=is_gateway_failure)
    assert (result.status, result.attempts, result.reason) == expected


async def test_a_gateway_that_says_the_client_has_opted_out_is_believed(
    engine: AsyncEngine,
) -> None:
    await add_answer(engine)
    owner = uuid4()
    [claimed] = await do(engine, lambda db: outbox.claim(db, "main", owner, HOUR, 10))
    outcome = Rejected("opted_out", is_opt_out=True)
    result = decide_result(claimed, outcome, 1, POLICY, is_gateway_failure=False)
    assert await do(engine, lambda db: outbox.record(db, claimed, owner, result))
    [opt_out] = await rows(engine, "SELECT source, gateway FROM opt_out")
    assert (opt_out["source"], opt_out["gateway"]) == ("gateway", "main")
    assert not await do(engine, lambda db: outbox.record(db, claimed, owner, result))


# ---- creating -------------------------------------------------------------------------------


async def test_an_erased_reply_and_one_of_a_removed_gateway_cannot_be_answered(
    engine: AsyncEngine,
) -> None:
    [client_id] = await add_clients(engine, 1)
    phone = await value(engine, "SELECT phone FROM client")
    await do(
        engine,
        lambda db: store.add_replies(db, "main", [Reply(phone, "Hi")], datetime.now(UTC), RULES),
    )
    new = NewAnswer(text="Hello")
    with pytest.raises(ReplyGatewayError):
        await service.create_answer(engine, Channels(), 1, new, COMMAND_LINE)
    await erase_client(engine, client_id, COMMAND_LINE)
    channels = Channels([channel_to("http://127.0.0.1:9/")])
    with pytest.raises(ReplyErasedError):
        await service.create_answer(engine, channels, 1, new, COMMAND_LINE)
    assert await value(engine, "SELECT count(*) FROM answer") == 0


async def test_erasing_a_client_stops_answers_that_wait_and_forgets_those_that_are_sent(
    engine: AsyncEngine,
) -> None:
    waiting, sent = await add_answer(engine), await add_answer(engine)
    await execute(
        engine,
        f"""UPDATE answer SET status = 'sending', lease_owner = gen_random_uuid(),
            lease_expires_at = now() + interval '1 hour' WHERE id = {sent}""",  # noqa: S608  # a number
    )
    [client_id] = await add_clients(engine, 1)
    await execute(engine, f"UPDATE client SET phone = '{PHONE}'")  # noqa: S608  # a constant
    await erase_client(engine, client_id, COMMAND_LINE)
    assert (await until_status(engine, waiting, "failed"))["reason"] == "client_deleted"
    assert (await until_status(engine, sent, "sending"))["text"] is None


async def test_an_audit_entry_has_neither_phone_nor_text(engine: AsyncEngine) -> None:
    await add_answer(engine, "Secret answer")
    [entry] = await rows(engine, "SELECT * FROM audit")
    assert (entry["action"], entry["target_kind"], entry["target_id"]) == (
        *("reply_answered", "reply"),
        1,
    )
    assert "Secret" not in str(dict(entry))
    assert PHONE not in str(dict(entry))


async def test_the_answers_of_a_reply_are_returned_oldest_first(engine: AsyncEngine) -> None:
    await add_answer(engine, "One")
    channels = Channels([channel_to("http://127.0.0.1:9/")])
    for text in ("Two", "Three"):
        await service.create_answer(engine, channels, 1, NewAnswer(text=text), COMMAND_LINE)
    async with engine.connect() as connection:
        detail = await reading.get_detail(connection, 1)
    assert [answer.text for answer in detail.answers] == ["One", "Two", "Three"]
