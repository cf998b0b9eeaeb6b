"""The sandbox gateway calls mailer: at the right time, repeatedly, and with a record of it."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession, web
from tests.event_timeout import EVENT_TIMEOUT

from mailer.clock import elapsed
from mailer.errors import InvalidError
from mailer.gateway.callback import UnreadableCallbackError
from mailer.gateway.config import ConfiguredGateway, read_gateways
from mailer.gateway.http import HttpGateway
from mailer.gateway.poll_rules import PolledMessage
from mailer.gateway.protocol import Accepted, Outcome, OutgoingMessage, Request
from mailer.gateway.sandbox import CallOptions, Faults, SandboxCall, SandboxGateway
from mailer.gateway.sandbox_command import run_sandbox

PHONE, TEXT = "79161234567", "Hello from the test"


class Receiver:
    """Stands in for mailer: keeps the calls, and answers with what `answers` has next.

    After the last of `answers` it answers 200.
    """

    def __init__(self, *answers: int, body: str = "") -> None:
        self.targets: list[str] = []
        self._answers = list(answers)
        self._body = body
        self.url = ""

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.05)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"{site.name}/gateways/main/receipts?message="
        try:
            yield
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        await request.read()
        self.targets.append(request.raw_path)
        return web.Response(status=self._answers.pop(0) if self._answers else 200, text=self._body)


@asynccontextmanager
async def client_of(sandbox: SandboxGateway, folder: Path) -> AsyncIterator[HttpGateway]:
    """Run a sandbox, and yield mailer's client of it."""
    async with sandbox.run() as url, HttpGateway(configure(sandbox, url, folder)) as client:
        yield client


def configure(sandbox: SandboxGateway, url: str, folder: Path) -> ConfiguredGateway:
    file = folder / "gateways.toml"
    file.write_text(sandbox.gateway_table("main", url), encoding="utf-8")
    [gateway] = read_gateways(file, {})
    return gateway


async def send(client: HttpGateway, callback: str = "", message_id: int = 12) -> Outcome:
    """Send a message whose receipts go to `callback` with its id at the end."""
    message = OutgoingMessage(
        id=message_id,
        phone=PHONE,
        text=TEXT,
        sender="ACME",
        validity=7_200,
        callback=f"{callback}{message_id}" if callback else "",
    )
    return await client.send(Request(message, elapsed() + EVENT_TIMEOUT))


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(EVENT_TIMEOUT):
        while not condition():
            await asyncio.sleep(0.005)


async def test_accepted_message_gets_its_receipts_at_its_url(tmp_path: Path) -> None:
    calls: list[SandboxCall] = []
    sandbox = SandboxGateway(Faults(), kind="kannel", on_call=calls.append)
    receiver = Receiver()
    async with receiver.run(), client_of(sandbox, tmp_path) as client:
        assert isinstance(await send(client, receiver.url), Accepted)
        await wait_until(lambda: sandbox.call_counts.receipts == 2)
    path = "/gateways/main/receipts?message=12&status="
    assert sorted(receiver.targets) == [f"{path}1", f"{path}8"]
    assert {(call.content, call.message_id, call.status) for call in calls} == {
        ("sent", 12, 200),
        ("delivered", 12, 200),
    }
    assert all(call.is_taken and call.attempts == 1 for call in calls)


async def test_refused_message_gets_no_receipt(tmp_path: Path) -> None:
    sandbox = SandboxGateway(Faults(reject_rate=1.0), kind="kannel")
    receiver = Receiver()
    async with receiver.run(), client_of(sandbox, tmp_path) as client:
        await send(client, receiver.url)
        await send(client, receiver.url)
    assert receiver.targets == []


@pytest.mark.parametrize(("kind", "receipts"), [("infobip", 4), ("json", 2)])
async def test_repeat_gets_receipts_only_if_the_gateway_does_not_recognize_it(
    kind: str, receipts: int, tmp_path: Path
) -> None:
    sandbox = SandboxGateway(Faults(), kind=kind)
    receiver = Receiver()
    async with receiver.run(), client_of(sandbox, tmp_path) as client:
        await send(client, receiver.url)
        await send(client, receiver.url)
        await wait_until(lambda: sandbox.call_counts.receipts == receipts)
    assert sandbox.counts.repeats == 1


async def test_early_receipts_come_before_the_response(tmp_path: Path) -> None:
    options = CallOptions(receipt_early=1.0)
    sandbox = SandboxGateway(Faults(), kind="kannel", calls=options)
    receiver = Receiver()
    async with receiver.run(), client_of(sandbox, tmp_path) as client:
        await send(client, receiver.url)
        assert len(receiver.targets) == 2


async def test_early_receipt_is_not_lost_when_the_client_disconnects(tmp_path: Path) -> None:
    sandbox = SandboxGateway(Faults(), kind="kannel", calls=CallOptions(receipt_early=1.0))
    receiver = Receiver(503)
    async with receiver.run(), client_of(sandbox, tmp_path) as client:
        sending = asyncio.create_task(send(client, receiver.url))
        await wait_until(lambda: len(receiver.targets) > 0)
        sending.cancel()
        await wait_until(lambda: sandbox.call_counts.receipts == 2)
    assert sandbox.counts.accepted == 1


@pytest.mark.parametrize("status", [500, 503, 429, 302])
async def test_call_is_repeated_until_mailer_takes_it(status: int, tmp_path: Path) -> None:
    calls: list[SandboxCall] = []
    options = CallOptions(receipt_early=1.0)  # one call after the other
    sandbox = SandboxGateway(Faults(), kind="kannel", calls=options, on_call=calls.append)
    receiver = Receiver(status)
    async with receiver.run(), client_of(sandbox, tmp_path) as client:
        await send(client, receiver.url)
        await wait_until(lambda: sandbox.call_counts.receipts == 2)
    assert sorted(call.attempts for call in calls) == [1, 2]
    assert sandbox.call_counts.unanswered == 0


async def test_call_is_repeated_while_nobody_listens(tmp_path: Path) -> None:
    sandbox = SandboxGateway(Faults(), kind="kannel")
    receiver = Receiver()
    async with receiver.run():
        url = receiver.url
    async with client_of(sandbox, tmp_path) as client:
        await send(client, url)
    assert (sandbox.call_counts.receipts, sandbox.call_counts.unanswered) == (0, 2)


async def test_call_with_another_answer_than_the_provider_expects_is_not_taken(
    tmp_path: Path,
) -> None:
    receiver = Receiver(body="OK")
    async with receiver.run():
        options = CallOptions(receipts_url=receiver.url)
        sandbox = SandboxGateway(Faults(), kind="smsru", calls=options)
        async with client_of(sandbox, tmp_path) as client:
            await send(client)
            await wait_until(lambda: len(receiver.targets) > 2)
    assert (sandbox.call_counts.receipts, sandbox.call_counts.unanswered) == (0, 2)


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_call_that_mailer_refuses_is_not_repeated(status: int, tmp_path: Path) -> None:
    sandbox = SandboxGateway(Faults(), kind="kannel")
    receiver = Receiver(status, status)
    async with receiver.run(), client_of(sandbox, tmp_path) as client:
        await send(client, receiver.url)
        await wait_until(lambda: sandbox.call_counts.refused == 2)
    assert len(receiver.targets) == 2


async def test_calls_that_wait_when_the_sandbox_stops_are_recorded_as_unanswered(
    tmp_path: Path,
) -> None:
    calls: list[SandboxCall] = []
    options = CallOptions(receipt_delay=86_400)
    sandbox = SandboxGateway(Faults(), kind="kannel", calls=options, on_call=calls.append)
    receiver = Receiver()
    async with receiver.run(), client_of(sandbox, tmp_path) as client:
        await send(client, receiver.url)
    assert [(call.status, call.attempts, call.is_taken) for call in calls] == [(None, 0, False)] * 2
    assert sandbox.call_counts.unanswered == 2


async def test_reply_goes_to_the_url_for_replies(tmp_path: Path) -> None:
    sandbox = SandboxGateway(Faults(), kind="kannel", calls=CallOptions(reply_share=1.0))
    receiver = Receiver()
    async with receiver.run(), client_of(sandbox, tmp_path) as client:
        await send(client, receiver.url)
        await wait_until(lambda: sandbox.call_counts.replies == 1)
    [reply] = [target for target in receiver.targets if "/inbound?" in target]
    assert "from=%2B79161234567&to=ACME" in reply


# Polls


async def ask(gateway: ConfiguredGateway, *messages: PolledMessage) -> dict[int | None, str]:
    """Ask a sandbox for the status of messages; return it by mailer's ids."""
    rules = gateway.poll_rules({"Host": "sandbox", "Connection": "close"})
    assert rules is not None
    address = urlsplit(gateway.url.before)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(rules.request(messages))
    response = await reader.read()
    writer.close()
    _, _, content = response.partition(b"\r\n\r\n")
    return {each.message_id: each.status for each in rules.read(content, messages)}


@pytest.mark.parametrize("kind", ["android", "smsaero", "smsc", "smsru"])
@pytest.mark.parametrize(
    ("options", "status"),
    [
        (CallOptions(), "delivered"),
        (CallOptions(receipt_failed=1.0), "failed"),
        (CallOptions(receipt_delay=86_400), "sent"),
        (CallOptions(receipt_loss=1.0), "sent"),
    ],
)
async def test_status_is_answered_when_it_is_asked(
    kind: str, options: CallOptions, status: str, tmp_path: Path
) -> None:
    sandbox = SandboxGateway(Faults(seed=1), kind=kind, calls=options)
    async with sandbox.run() as url:
        gateway = configure(sandbox, url, tmp_path)
        async with HttpGateway(gateway) as client:
            outcome = await send(client)
        assert isinstance(outcome, Accepted)
        message = PolledMessage(12, outcome.gateway_message_id or "", PHONE)
        assert await ask(gateway, message) == {12: status}
    assert sandbox.counts.poll == 1


async def test_status_of_several_messages_is_answered_at_once(tmp_path: Path) -> None:
    sandbox = SandboxGateway(Faults(), kind="smsru")
    async with sandbox.run() as url:
        gateway = configure(sandbox, url, tmp_path)
        async with HttpGateway(gateway) as client:
            outcomes = [await send(client, message_id=number) for number in range(1, 101)]
        messages = [
            PolledMessage(number, outcome.gateway_message_id or "", PHONE)
            for number, outcome in enumerate(outcomes, 1)
            if isinstance(outcome, Accepted)
        ]
        assert await ask(gateway, *messages) == dict.fromkeys(range(1, 101), "delivered")


@pytest.mark.parametrize("kind", ["android", "smsaero", "smsc", "smsru"])
async def test_message_that_is_not_known_has_no_status(kind: str, tmp_path: Path) -> None:
    sandbox = SandboxGateway(Faults(), kind=kind)
    async with sandbox.run() as url:
        gateway = configure(sandbox, url, tmp_path)
        with contextlib.suppress(UnreadableCallbackError):  # it may be no JSON
            assert await ask(gateway, PolledMessage(7, "77", PHONE)) == {}
    assert (sandbox.counts.poll, sandbox.counts.total) == (1, 1)


# Options and the log


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"receipt_loss": 1.1}, "^receipt_loss: must be from 0 to 1$"),
        ({"receipt_delay": -1.0}, "^receipt_delay: must be from 0 to 86,400$"),
        ({"reply_share": float("nan")}, "^reply_share: must be from 0 to 1$"),
        ({"receipts_url": "mailer:8000"}, "^receipts_url: must start with http:// or https://$"),
    ],
)
def test_wrong_options_are_named(fields: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        CallOptions(**fields)  # type: ignore[arg-type]  # the field is a parameter here


async def test_log_has_a_row_for_each_call_without_phone_and_text() -> None:
    lines: list[str] = []
    log = io.StringIO()
    receiver = Receiver()
    options = CallOptions(reply_share=1.0, stop_share=1.0)
    async with receiver.run(), ClientSession() as session:
        running = run_sandbox(Faults(), "127.0.0.1", 0, log, lines.append, calls=options)
        task = asyncio.create_task(running)
        await wait_until(lambda: bool(lines))
        body = {"id": 12, "phone": int(PHONE), "text": TEXT, "callback": f"{receiver.url}12"}
        async with session.post(f"{lines[0]}12", json=body) as response:
            assert response.status == 200
        await wait_until(lambda: len(receiver.targets) == 3)
        await wait_until(lambda: "replies 1" in lines[-1])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    rows = [json.loads(line) for line in log.getvalue().splitlines()]
    assert rows[0]["kind"] == "accepted"
    found = {(row["id"], row["kind"], row.get("status"), row.get("stop")) for row in rows[1:]}
    assert found == {
        (12, "receipt", "sent", None),
        (12, "receipt", "delivered", None),
        (12, "reply", None, True),
    }
    assert all((row["answer"], row["taken"], row["attempts"]) == (200, True, 1) for row in rows[1:])
    assert "calls: receipts 2, replies 1" in lines[-1]
    output = log.getvalue() + "".join(lines)
    assert PHONE not in output
    assert TEXT not in output
