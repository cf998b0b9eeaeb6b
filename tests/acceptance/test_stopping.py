"""Pause, cancel, delete and the end of a mailing take effect at once.

Only requests that are already written to the gateway may still be answered.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.acceptance.test_main_job import send_short_mailing
from tests.fault_servers import listener_with_full_backlog
from tests.processes import Gateways, LoopLag, MailerProcess, Mailers, until, until_true

from mailer.sample_data import new_mailing


class SilentGateway:
    """A gateway that never answers; records when requests arrive and connections close."""

    def __init__(self) -> None:
        self.url = ""
        self.opened: list[float] = []
        """When each request arrived, as Unix time."""
        self.closed: list[float] = []
        """When mailer closed each connection, as Unix time."""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.opened.append(time.time())
            while await reader.read(1024):
                pass
        self.closed.append(time.time())
        writer.close()


@pytest.fixture
async def silent() -> AsyncIterator[SilentGateway]:
    """A running gateway that never answers."""
    gateway = SilentGateway()
    server = await asyncio.start_server(gateway.talk, "127.0.0.1", 0)
    gateway.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/send/"
    yield gateway
    server.close()


async def stop_mailing(mailer: MailerProcess, call: str, mailing_id: int) -> float:
    """Pause, cancel or delete a mailing; return when the response arrived, as Unix time."""
    if call == "delete":
        await mailer.call("DELETE", f"/mailings/{mailing_id}", status=204)
    else:
        mailing = await mailer.call("POST", f"/mailings/{mailing_id}/{call}")
        assert mailing["status"] == {"pause": "paused", "cancel": "cancelled"}[call]
    return time.time()


@pytest.mark.parametrize("call", ["pause", "cancel", "delete"])
async def test_no_request_starts_after_the_response_although_others_are_in_flight(
    start_mailer: Mailers, silent: SilentGateway, call: str, lag: LoopLag
) -> None:
    first, second = await asyncio.gather(
        *(start_mailer(gateway_url=silent.url, gateway_concurrency="5") for _ in range(2))
    )
    await first.create_clients(40)
    created = await first.call("POST", "/mailings", new_mailing(), 201)

    async def are_all_in_flight() -> bool:
        return len(silent.opened) == 2 * 5  # the concurrency of both processes

    await until_true(are_all_in_flight)

    answered_at = await stop_mailing(second, call, created["id"])

    await asyncio.sleep(0.5)
    assert len(silent.opened) == 10
    assert max(silent.opened) <= answered_at + lag.longest
    assert silent.closed == []  # requests in flight may still be answered


@pytest.mark.parametrize("call", ["pause", "cancel", "delete"])
async def test_request_that_waits_for_its_connection_is_aborted(
    start_mailer: Mailers, call: str
) -> None:
    """The gateway accepts no connection, because its backlog is full."""
    with listener_with_full_backlog() as gateway:
        url = f"http://127.0.0.1:{gateway.getsockname()[1]}/send/"
        mailer = await start_mailer(gateway_url=url, gateway_concurrency="3")
        await mailer.create_clients(10)
        created = await mailer.call("POST", "/mailings", new_mailing(), 201)

        async def are_sending() -> bool:
            return bool((await mailer.mailing(created["id"]))["sending_messages"] >= 3)

        await until_true(are_sending)

        await stop_mailing(mailer, call, created["id"])

        async def are_released() -> bool:
            return not await mailer.query("SELECT count(*) FROM message WHERE status = 'sending'")

        await until_true(are_released)
        assert await mailer.query("SELECT coalesce(max(attempts), 0) FROM message") == 0
        assert_no_request_arrives(gateway)


def assert_no_request_arrives(listener: socket.socket) -> None:
    """Accept all connections that are waiting, and assert that none carries a request."""
    listener.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(0.2)
                with contextlib.suppress(TimeoutError, ConnectionError):
                    assert connection.recv(1) == b""


async def test_resumed_mailing_continues_where_it_was_paused(
    start_gateway: Gateways, start_mailer: Mailers, lag: LoopLag
) -> None:
    gateway = await start_gateway(latency=0.02)
    mailer = await start_mailer(**gateway.settings, gateway_concurrency="5")
    await mailer.create_clients(300)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await gateway.until_received(50)

    paused_at = await stop_mailing(mailer, "pause", created["id"])

    async def find_without_requests() -> dict[str, Any] | None:
        mailing = await mailer.mailing(created["id"])
        return mailing if mailing["sending_messages"] == 0 else None

    paused = await until(find_without_requests)  # results of the requests in flight are recorded
    sent_count = len(gateway.received)
    assert sent_count < 300
    last_arrival = max(request.arrived for request in gateway.received)  # microseconds
    assert last_arrival <= (paused_at + lag.longest) * 1e6
    assert (paused["status"], paused["delivered_messages"]) == ("paused", sent_count)

    resumed = await mailer.call("POST", f"/mailings/{created['id']}/resume")
    assert resumed["status"] == "running"
    assert (await mailer.finished(created["id"]))["delivered_messages"] == 300
    assert len(gateway.received) == 300


async def test_cancelled_mailing_delivers_nothing_more_and_its_counts_add_up(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.02)
    mailer = await start_mailer(**gateway.settings, gateway_concurrency="5")
    await mailer.create_clients(300)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await gateway.until_received(50)
    await stop_mailing(mailer, "cancel", created["id"])

    async def find_closed() -> dict[str, Any] | None:
        mailing = await mailer.mailing(created["id"])
        open_messages = mailing["scheduled_messages"] + mailing["sending_messages"]
        return mailing if open_messages == 0 else None

    mailing = await until(find_closed)
    assert mailing["status"] == "cancelled"
    assert mailing["delivered_messages"] == len(gateway.received) < 300
    assert mailing["cancelled_messages"] == 300 - len(gateway.received)
    reasons = f"/mailings/{created['id']}/messages?reason=mailing_cancelled"
    assert (await mailer.call("GET", reasons))["count"] == mailing["cancelled_messages"]


async def test_retry_sends_undelivered_messages_again(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(reject_rate=0.5, seed=3)
    mailer = await start_mailer(**gateway.settings)
    await mailer.create_clients(40)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    path = f"/mailings/{created['id']}"
    mailing = await mailer.finished(created["id"])
    undelivered = mailing["undelivered_messages"]
    assert 0 < undelivered < 40

    retried = await mailer.call("POST", f"{path}/retry")
    assert retried["status"] == "running"
    mailing = await mailer.finished(created["id"])
    assert len(gateway.received) == 40 + undelivered
    assert mailing["delivered_messages"] > 40 - undelivered
    assert mailing["delivered_messages"] + mailing["undelivered_messages"] == 40


@pytest.mark.parametrize("on_unknown", ["retry", "hold"])
async def test_no_request_is_in_flight_after_the_end_even_if_the_gateway_is_slow(
    start_mailer: Mailers, silent: SilentGateway, on_unknown: str, lag: LoopLag
) -> None:
    mailer = await start_mailer(gateway_url=silent.url, gateway_concurrency="15")
    await mailer.create_clients(20)

    def have_filled_concurrency() -> bool:
        """Return whether 15 requests were in flight; if not, forget them before another try."""
        if len(silent.opened) == 15:
            return True
        silent.opened.clear()
        silent.closed.clear()
        return False

    mailing, end = await send_short_mailing(mailer, have_filled_concurrency, on_unknown=on_unknown)
    assert len(silent.closed) == 15
    assert max(silent.closed) <= end + lag.longest
    assert mailing["unknown_messages"] == 15
    assert mailing["unknown_messages"] + mailing["cancelled_messages"] == 20
    aborted = "SELECT count(*) FROM message WHERE last_failure = 'timeout' AND mailing_id = $1"
    assert await mailer.query(aborted, mailing["id"]) == 15
    gateway = await mailer.call("GET", "/gateways/default")  # the gateway is not at fault
    assert (gateway["breaker"], gateway["failures"]) == ("closed", 0)


async def test_earlier_end_aborts_requests_in_flight(
    start_mailer: Mailers, silent: SilentGateway, lag: LoopLag
) -> None:
    mailer = await start_mailer(gateway_url=silent.url, gateway_concurrency="15")
    await mailer.create_clients(15)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)

    async def are_all_in_flight() -> bool:
        return len(silent.opened) == 15

    await until_true(are_all_in_flight)
    end = datetime.now(UTC) + timedelta(seconds=1.5)
    change = {"datetime_end": end.isoformat()}
    await mailer.call("PATCH", f"/mailings/{created['id']}", change)
    await mailer.finished(created["id"])
    assert max(silent.closed) <= end.timestamp() + lag.longest
    assert (await mailer.call("GET", "/gateways/default"))["breaker"] == "closed"


async def test_no_request_starts_after_the_sending_window_closes(
    start_gateway: Gateways, start_mailer: Mailers, lag: LoopLag
) -> None:
    gateway = await start_gateway(latency=0.1)
    mailer = await start_mailer(**gateway.settings, gateway_concurrency="5")
    await mailer.create_clients(300, time_zones=("Asia/Tokyo",))
    utc_offset = timedelta(hours=9)  # of Tokyo
    local_now = datetime.now(UTC) + utc_offset
    local_closing = (local_now + timedelta(seconds=4)).replace(microsecond=0)
    window: dict[str, Any] = {
        "send_interval_time_start": (local_now - timedelta(hours=1)).strftime("%H:%M:%S"),
        "send_interval_time_end": local_closing.strftime("%H:%M:%S"),
    }
    created = await mailer.call("POST", "/mailings", new_mailing(**window), 201)
    mailing = await mailer.finished(created["id"])

    closing = (local_closing - utc_offset).timestamp()
    tolerance = 0.05 + lag.longest  # seconds
    assert 0 < len(gateway.received) < 300
    last_arrival = max(request.arrived for request in gateway.received)  # microseconds
    assert last_arrival <= (closing + tolerance) * 1e6
    unsent = await mailer.call("GET", f"/mailings/{created['id']}/messages?reason=no_window")
    assert unsent["count"] == mailing["cancelled_messages"] == 300 - len(gateway.received)


async def test_internal_error_for_one_message_does_not_stop_others(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    """The error here: the database knows a client's time zone, and Python does not."""
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await mailer.create_clients(20)
    # with a window, mailer needs the client's local time
    nearly_all_day: dict[str, Any] = {
        "send_interval_time_start": "00:00:00",
        "send_interval_time_end": "23:59:59",
    }
    body = new_mailing(starts_in=1, **nearly_all_day)
    created = await mailer.call("POST", "/mailings", body, 201)
    await mailer.call("POST", f"/mailings/{created['id']}/pause")

    async def is_enqueued() -> bool:
        return bool(await mailer.query("SELECT count(*) FROM message") == 20)

    await until_true(is_enqueued)
    unknown_to_python = "UPDATE client SET time_zone = 'XYZ-3' WHERE id = 1 RETURNING id"
    await mailer.query(unknown_to_python)
    await mailer.call("POST", f"/mailings/{created['id']}/resume")
    mailing = await mailer.finished(created["id"])
    assert (mailing["delivered_messages"], mailing["undelivered_messages"]) == (19, 1)
    assert await mailer.query("SELECT reason FROM message WHERE client_id = 1") == "internal_error"
