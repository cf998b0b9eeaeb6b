"""Webhooks with real mailer processes: at least once, and what the document says."""

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook as Verifier
from tests.event_timeout import EVENT_TIMEOUT
from tests.processes import Gateways, MailerProcess, Mailers, until, until_true
from tests.webhook_receiver import Receiver, receiving

from mailer.sample_data import new_mailing

EVENTS = ["mailing.started", "mailing.finished", "messages.finished"]
PRIVATE = {"webhook_private_addresses": "true"}
QUICK = {"gateway_concurrency": "10", "gateway_timeout": "1", "lease": "3"}
WAITING = "SELECT count(*) FROM webhook_delivery WHERE status = 'waiting'"
EXPIRE_LEASES = """
    WITH expired AS (
        UPDATE webhook_delivery SET attempt_at = now() WHERE attempt_at > now() RETURNING id)
    SELECT count(*) FROM expired"""
"""Expires the leases of a dead process, which would take two minutes; returns how many."""
FINAL = "SELECT array_agg(id ORDER BY id) FROM message WHERE status = 'delivered'"
DOCUMENT = Path(__file__).parents[2] / "docs" / "webhooks.md"


async def add_webhook(mailer: MailerProcess, receiver: Receiver) -> dict[str, Any]:
    """Create a webhook for a receiver, which verifies the signatures with its secret."""
    payload = {"name": "Shop", "url": receiver.url, "events": EVENTS}
    created: dict[str, Any] = await mailer.call("POST", "/webhooks", payload, 201)
    receiver.verifier = Verifier(created["secret"])
    return created


async def until_delivered(mailer: MailerProcess) -> None:
    """Wait until no event waits."""

    async def is_done() -> bool:
        return bool(await mailer.query(WAITING) == 0)

    await until_true(is_done)


def message_ids(receiver: Receiver) -> list[int]:
    """Return the ids of all messages in the events, each event counted once."""
    events = {event.id: event for event in receiver.events}
    return sorted(
        message["id"]
        for event in events.values()
        if event.type == "messages.finished"
        for message in event.data["messages"]
    )


async def test_killed_workers_lose_no_event_and_repeat_only_attempts_in_flight(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.02)
    async with receiving(delay=0.05) as receiver:
        mailer = await start_mailer(**gateway.settings, **QUICK, **PRIVATE)
        await add_webhook(mailer, receiver)
        await mailer.create_clients(1_000)
        created = await mailer.call("POST", "/mailings", new_mailing(), 201)
        may_repeat = 0
        for kill in range(1, 4):
            await gateway.until_received(200 * kill)
            await receiver.until_received(len(receiver.events) + 1)
            await mailer.stop(signal.SIGKILL)
            may_repeat += await mailer.query(EXPIRE_LEASES)
            mailer = await start_mailer(**gateway.settings, **QUICK, **PRIVATE)
        await mailer.finished(created["id"])
        await until_delivered(mailer)
        assert message_ids(receiver) == await mailer.query(FINAL)
        types = {event.id: event.type for event in receiver.events}
        assert sorted(types.values()).count("mailing.started") == 1
        assert sorted(types.values()).count("mailing.finished") == 1
        assert len(receiver.events) - len(types) <= may_repeat


async def test_two_workers_deliver_each_event_once(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    async with receiving() as receiver:
        mailer, _ = [await start_mailer(**gateway.settings, **PRIVATE) for _ in range(2)]
        await add_webhook(mailer, receiver)
        await mailer.create_clients(3_000)
        created = await mailer.call("POST", "/mailings", new_mailing(), 201)
        await mailer.finished(created["id"])
        await until_delivered(mailer)
        assert message_ids(receiver) == await mailer.query(FINAL)
        ids = [event.id for event in receiver.events]
        assert len(ids) == len(set(ids))


async def test_private_addresses_are_refused_by_default(start_mailer: Mailers) -> None:
    mailer = await start_mailer()
    for url in ("https://127.0.0.1/", "https://localhost/", "https://169.254.169.254/"):
        payload = {"name": "Shop", "url": url, "events": EVENTS}
        problem = await mailer.call("POST", "/webhooks", payload, 400)
        assert "not public" in problem["errors"][0]["message"]


async def test_the_receiver_of_the_document_gets_events(
    start_mailer: Mailers, tmp_path: Path
) -> None:
    [example] = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    mailer = await start_mailer(**PRIVATE)
    async with receiving() as unused:
        created = await add_webhook(mailer, unused)
    script = tmp_path / "receiver.py"
    script.write_text(
        example.replace("whsec_...", created["secret"])
        + "\nfrom http.server import HTTPServer\n"
        + "server = HTTPServer(('127.0.0.1', 0), Receiver)\n"
        + "print(server.server_port, flush=True)\n"
        + "server.serve_forever()\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", str(script)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(EVENT_TIMEOUT):
            port = int(await process.stdout.readline())
            path = f"/webhooks/{created['id']}"
            await mailer.call("PATCH", path, {"url": f"http://127.0.0.1:{port}/"})
            await mailer.call("POST", f"{path}/test")
            line = await process.stdout.readline()
            assert line.decode().startswith("test {'webhook_id': ")
            await mailer.call("POST", f"{path}/rotate-secret")  # it has the old one
            await mailer.call("POST", f"{path}/test")
            line = await process.stdout.readline()
            assert line.decode().startswith("test {'webhook_id': ")

        async def find_delivered() -> list[dict[str, Any]] | None:
            results = (await mailer.call("GET", f"{path}/deliveries"))["results"]
            return results if {row["status"] for row in results} == {"delivered"} else None

        assert [row["response_status"] for row in await until(find_delivered)] == [204, 204]
    finally:
        process.kill()
        await process.wait()
