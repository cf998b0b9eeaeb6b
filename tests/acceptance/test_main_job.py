"""The main job: the real process delivers mailings through a real gateway."""

import asyncio
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.processes import Gateways, LoopLag, MailerProcess, Mailers, until

from mailer.sample_data import new_mailing


async def send_short_mailing(
    mailer: MailerProcess, has_sent: Callable[[], bool], **fields: Any
) -> tuple[dict[str, Any], float]:
    """Send a mailing that ends soon; return the finished mailing, and its end as Unix time.

    If a busy machine has not sent enough by then (`has_sent`), a longer mailing is sent.
    """
    for lasts in (2, 4, 8, 16, 32):
        body = new_mailing(lasts=lasts, **fields)
        async with mailer.session.post("/api/v1/mailings", json=body) as response:
            if response.status == 400:  # its end has already passed
                continue
            created = await response.json()
        mailing = await mailer.finished(created["id"])
        if has_sent():
            return mailing, datetime.fromisoformat(str(body["datetime_end"])).timestamp()
    raise TimeoutError


async def test_due_mailing_is_delivered_to_its_audience(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await mailer.create_clients(20, tags=("vip",))
    await mailer.call("POST", "/clients", {"phone": "79990000000"}, 201)

    created = await mailer.call("POST", "/mailings", new_mailing(client_filter="vip"), 201)
    assert created["clients_count"] == 20

    mailing = await mailer.finished(created["id"])
    assert mailing["delivered_messages"] == mailing["created_messages"] == 20
    assert sorted(gateway.ids) == sorted(m["id"] for m in mailing["mailing_messages"])


async def test_future_mailing_starts_by_itself_at_its_start(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await mailer.create_clients(3)

    future = new_mailing(starts_in=1.5)
    created = await mailer.call("POST", "/mailings", future, 201)
    assert created["status"] == "scheduled"
    assert (created["scheduled_messages"], created["created_messages"]) == (3, 0)

    await mailer.finished(created["id"])
    start = datetime.fromisoformat(future["datetime_start"])
    assert min(request.arrived for request in gateway.received) >= start.timestamp() * 1e6


async def test_nothing_is_sent_after_the_end(
    start_gateway: Gateways, start_mailer: Mailers, lag: LoopLag
) -> None:
    gateway = await start_gateway(latency=0.3)
    mailer = await start_mailer(**gateway.settings, gateway_concurrency="2")
    await mailer.create_clients(300)
    mailing, end = await send_short_mailing(mailer, lambda: bool(gateway.received))
    assert len(gateway.received) < 300
    assert all(request.arrived <= (end + lag.longest) * 1e6 for request in gateway.received)
    statuses = ("delivered", "cancelled", "unknown")
    assert sum(mailing[f"{status}_messages"] for status in statuses) == 300
    expired = await mailer.call("GET", f"/mailings/{mailing['id']}/messages?reason=expired")
    assert expired["count"] == mailing["cancelled_messages"]


async def test_nothing_is_sent_outside_the_sending_window(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    now = datetime.now(UTC)
    in_window = await mailer.call("POST", "/clients", {"phone": "79160000001"}, 201)
    await mailer.call("POST", "/clients", {"phone": "79160000002", "time_zone": "Asia/Tokyo"}, 201)

    window: dict[str, Any] = {
        "send_interval_time_start": (now - timedelta(hours=1)).strftime("%H:%M"),
        "send_interval_time_end": (now + timedelta(hours=1)).strftime("%H:%M"),
    }
    created = await mailer.call("POST", "/mailings", new_mailing(**window), 201)
    mailing = await mailer.finished(created["id"])

    sent, cancelled = sorted(mailing["mailing_messages"], key=lambda message: message["client_id"])
    assert (sent["client_id"], sent["status"]) == (in_window["id"], "delivered")
    assert (cancelled["status"], cancelled["reason"]) == ("cancelled", "no_window")
    assert gateway.ids == [sent["id"]]


async def test_temporary_failures_are_retried_and_rejections_are_not(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(error_rate=0.2, reject_rate=0.2, malformed_rate=0.2, seed=7)
    mailer = await start_mailer(
        **gateway.settings,
        retry_base="0.01",
        retry_cap="0.05",
        retry_attempts="50",
        breaker_reset="0.1",
    )
    await mailer.create_clients(40)

    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    mailing = await mailer.finished(created["id"])

    counts = gateway.sandbox.counts
    assert counts.error > 0
    assert counts.malformed > 0
    assert mailing["delivered_messages"] == counts.accepted
    assert mailing["undelivered_messages"] == counts.reject > 0
    rejected = await mailer.call("GET", f"/mailings/{created['id']}/messages?status=undelivered")
    assert {message["reason"] for message in rejected["results"]} == {"rejected_400"}


async def test_kill_loses_no_message(start_gateway: Gateways, start_mailer: Mailers) -> None:
    gateway = await start_gateway(latency=0.05)
    settings = gateway.settings | {"gateway_concurrency": "5", "lease": "3", "gateway_timeout": "1"}
    mailer = await start_mailer(**settings)
    await mailer.create_clients(100)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)

    async def some_sent() -> bool | None:
        return len(gateway.received) >= 20 or None

    await until(some_sent)
    await mailer.stop(signal.SIGKILL)
    claimed = await mailer.query("SELECT count(*) FROM message WHERE status = 'sending'")
    second = await start_mailer(**settings)
    mailing = await second.finished(created["id"])

    assert mailing["delivered_messages"] == 100
    assert set(gateway.ids) == {message["id"] for message in mailing["mailing_messages"]}
    assert gateway.sandbox.counts.repeats <= claimed  # their results were not recorded


async def test_stopped_process_finishes_requests_in_flight_and_releases_the_rest(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.2)
    mailer = await start_mailer(**gateway.settings, gateway_concurrency="5")
    await mailer.create_clients(50)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)

    async def some_sent() -> bool | None:
        return len(gateway.received) >= 5 or None

    await until(some_sent)
    assert await mailer.stop() == 0

    second = await start_mailer()  # without a gateway, to read the API
    mailing = await second.mailing(created["id"])
    assert mailing["sending_messages"] == 0
    assert mailing["delivered_messages"] == gateway.sandbox.counts.accepted
    assert mailing["scheduled_messages"] == 50 - mailing["delivered_messages"]


async def test_workers_on_one_database_share_the_work_and_send_nothing_twice(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateways = [await start_gateway(latency=0.02) for _ in range(2)]
    mailers = await asyncio.gather(
        *(start_mailer(**gateway.settings, gateway_concurrency="5") for gateway in gateways)
    )
    await mailers[0].create_clients(200)
    created = await mailers[0].call("POST", "/mailings", new_mailing(), 201)
    mailing = await mailers[1].finished(created["id"])

    assert mailing["delivered_messages"] == 200
    sent = [set(gateway.ids) for gateway in gateways]
    assert all(sent)
    assert not sent[0] & sent[1]
    assert sum(len(gateway.received) for gateway in gateways) == 200


async def test_deleted_mailing_starts_no_request_after_the_answer(
    start_gateway: Gateways, start_mailer: Mailers, lag: LoopLag
) -> None:
    gateway = await start_gateway(latency=0.02)
    first, second = await asyncio.gather(
        *(start_mailer(**gateway.settings, gateway_concurrency="5") for _ in range(2))
    )
    await first.create_clients(300)
    created = await first.call("POST", "/mailings", new_mailing(), 201)

    async def some_sent() -> bool | None:
        return len(gateway.received) >= 20 or None

    await until(some_sent)
    await second.call("DELETE", f"/mailings/{created['id']}", status=204)
    answered_at = datetime.now(UTC).timestamp()

    async def is_purged() -> bool | None:
        return await first.query("SELECT count(*) FROM message") == 0 or None

    await until(is_purged)  # results of the requests in flight are recorded before that
    assert len(gateway.received) < 300
    assert all(request.arrived <= (answered_at + lag.longest) * 1e6 for request in gateway.received)
    await first.call("GET", f"/mailings/{created['id']}", status=404)


async def test_without_a_gateway_nothing_is_sent(start_mailer: Mailers) -> None:
    mailer = await start_mailer()
    await mailer.create_clients(2)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)

    async def is_running() -> dict[str, Any] | None:
        mailing = await mailer.mailing(created["id"])
        return mailing if mailing["created_messages"] == 2 else None

    mailing = await until(is_running)
    assert (mailing["status"], mailing["scheduled_messages"]) == ("running", 2)
