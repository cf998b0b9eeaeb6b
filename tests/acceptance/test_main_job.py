"""The main job: real mailer processes deliver mailings through a sandbox gateway."""

import asyncio
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.processes import Gateways, LoopLag, MailerProcess, Mailers, until, until_true

from mailer.sample_data import new_mailing


async def send_short_mailing(
    mailer: MailerProcess, has_sent: Callable[[], bool], **fields: Any
) -> tuple[dict[str, Any], float]:
    """Send a mailing that ends soon; return the finished mailing, and its end as Unix time.

    On a busy machine a mailing may end before anything is sent. If `has_sent` returns False then,
    another mailing is sent that lasts twice as long.
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
    message_ids = [message["id"] for message in mailing["mailing_messages"]]
    assert sorted(gateway.ids) == sorted(message_ids)


async def test_future_mailing_starts_by_itself_at_its_start(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await mailer.create_clients(3)

    body = new_mailing(starts_in=1.5)
    created = await mailer.call("POST", "/mailings", body, 201)
    assert created["status"] == "scheduled"
    assert (created["scheduled_messages"], created["created_messages"]) == (3, 0)

    await mailer.finished(created["id"])
    start = datetime.fromisoformat(body["datetime_start"])
    first_arrival = min(request.arrived for request in gateway.received)  # microseconds
    assert first_arrival >= start.timestamp() * 1e6


async def test_nothing_is_sent_after_the_end(
    start_gateway: Gateways, start_mailer: Mailers, lag: LoopLag
) -> None:
    gateway = await start_gateway(latency=0.3)
    mailer = await start_mailer(**gateway.settings, gateway_concurrency="2")
    await mailer.create_clients(300)
    mailing, end = await send_short_mailing(mailer, lambda: bool(gateway.received))
    assert len(gateway.received) < 300
    last_arrival = max(request.arrived for request in gateway.received)  # microseconds
    assert last_arrival <= (end + lag.longest) * 1e6
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
    in_utc = await mailer.call("POST", "/clients", {"phone": "79160000001"}, 201)
    await mailer.call("POST", "/clients", {"phone": "79160000002", "time_zone": "Asia/Tokyo"}, 201)

    # open now in UTC, but not in Tokyo, which is nine hours ahead
    window: dict[str, Any] = {
        "send_interval_time_start": (now - timedelta(hours=1)).strftime("%H:%M"),
        "send_interval_time_end": (now + timedelta(hours=1)).strftime("%H:%M"),
    }
    created = await mailer.call("POST", "/mailings", new_mailing(**window), 201)
    mailing = await mailer.finished(created["id"])

    sent, cancelled = sorted(mailing["mailing_messages"], key=lambda message: message["client_id"])
    assert (sent["client_id"], sent["status"]) == (in_utc["id"], "delivered")
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

    await gateway.until_received(20)
    await mailer.stop(signal.SIGKILL)
    claimed = await mailer.query("SELECT count(*) FROM message WHERE status = 'sending'")
    second = await start_mailer(**settings)
    mailing = await second.finished(created["id"])

    assert mailing["delivered_messages"] == 100
    assert set(gateway.ids) == {message["id"] for message in mailing["mailing_messages"]}
    # only messages may be repeated whose results were not recorded at the kill
    assert gateway.sandbox.counts.repeats <= claimed


async def test_stopped_process_finishes_requests_in_flight_and_releases_the_rest(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.2)
    mailer = await start_mailer(**gateway.settings, gateway_concurrency="5")
    await mailer.create_clients(50)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)

    await gateway.until_received(5)
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
    first_ids, second_ids = (gateway.ids for gateway in gateways)
    assert first_ids
    assert second_ids
    assert len(first_ids) + len(second_ids) == 200
    assert len({*first_ids, *second_ids}) == 200


async def test_deleted_mailing_starts_no_request_after_the_answer(
    start_gateway: Gateways, start_mailer: Mailers, lag: LoopLag
) -> None:
    gateway = await start_gateway(latency=0.02)
    first, second = await asyncio.gather(
        *(start_mailer(**gateway.settings, gateway_concurrency="5") for _ in range(2))
    )
    await first.create_clients(300)
    created = await first.call("POST", "/mailings", new_mailing(), 201)

    await gateway.until_received(20)
    await second.call("DELETE", f"/mailings/{created['id']}", status=204)
    answered_at = datetime.now(UTC).timestamp()

    async def is_purged() -> bool:
        return not await first.query("SELECT count(*) FROM message")

    await until_true(is_purged)  # results of the requests in flight are recorded before that
    assert len(gateway.received) < 300
    last_arrival = max(request.arrived for request in gateway.received)  # microseconds
    assert last_arrival <= (answered_at + lag.longest) * 1e6
    await first.call("GET", f"/mailings/{created['id']}", status=404)


async def test_without_a_gateway_nothing_is_sent(start_mailer: Mailers) -> None:
    mailer = await start_mailer()
    await mailer.create_clients(2)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)

    async def find_enqueued() -> dict[str, Any] | None:
        mailing = await mailer.mailing(created["id"])
        return mailing if mailing["created_messages"] == 2 else None

    mailing = await until(find_enqueued)
    assert (mailing["status"], mailing["scheduled_messages"]) == ("running", 2)
