"""Deliveries to webhooks, with real HTTP servers that work, fail, hang or misbehave."""

import asyncio
import socket
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import do, execute, rows, value
from tests.fault_servers import (
    http_response,
    read_request,
    served,
    server_with_full_backlog,
)
from tests.webhook_receiver import (
    LOOPBACK,
    SECRET,
    add_webhook,
    deliveries,
    delivering,
    receiving,
    until_attempted,
)

from mailer.webhook import queue, store
from mailer.webhook.addresses import AddressPolicy
from mailer.webhook.delivery import MAX_REQUESTS
from mailer.webhook.signature import new_secret

SHORT = 0.3  # seconds


async def add_tests(engine: AsyncEngine, webhook_id: int, count: int = 1) -> None:
    """Create events `test` for an endpoint."""
    for _ in range(count):
        await do(engine, lambda db: store.add_test(db, webhook_id))


async def webhook(engine: AsyncEngine, webhook_id: int) -> dict[str, object]:
    """Return the row of an endpoint."""
    [row] = await rows(engine, f"SELECT * FROM webhook WHERE id = {webhook_id}")  # noqa: S608  # a number
    return dict(row)


async def until_statuses(engine: AsyncEngine, *statuses: str) -> list[dict[str, object]]:
    """Wait until the deliveries have these statuses, and return them."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        while True:
            found = await deliveries(engine)
            if [row["status"] for row in found] == list(statuses):
                return found
            await asyncio.sleep(0.02)


# ---- success ---------------------------------------------------------------------------------


async def test_an_event_is_posted_once_with_its_id_and_a_valid_signature(
    engine: AsyncEngine,
) -> None:
    async with receiving() as receiver, delivering(engine):
        webhook_id = await add_webhook(engine, receiver.url)
        await add_tests(engine, webhook_id)
        [delivery] = await until_statuses(engine, "delivered")
    [event] = receiver.events  # the receiver has verified the signature
    assert (event.id, event.type) == (str(delivery["event_id"]), "test")
    assert event.data == {"webhook_id": webhook_id}
    assert event.request.line.startswith("POST /send/ ")
    assert event.request.headers["content-type"] == "application/json"
    assert (delivery["attempts"], delivery["response_status"], delivery["error"]) == (1, 204, None)
    assert (await webhook(engine, webhook_id))["last_success_at"] is not None


async def test_many_events_use_few_connections_and_each_comes_once(engine: AsyncEngine) -> None:
    async with receiving(delay=0.01) as receiver, delivering(engine):
        await add_tests(engine, await add_webhook(engine, receiver.url), 100)
        await until_statuses(engine, *["delivered"] * 100)
    assert len({event.id for event in receiver.events}) == len(receiver.events) == 100
    assert receiver.most_in_flight <= MAX_REQUESTS
    assert receiver.connections <= MAX_REQUESTS


async def test_two_workers_deliver_each_event_once(engine: AsyncEngine) -> None:
    async with receiving() as receiver, delivering(engine), delivering(engine):
        await add_tests(engine, await add_webhook(engine, receiver.url), 100)
        await until_statuses(engine, *["delivered"] * 100)
    assert len({event.id for event in receiver.events}) == len(receiver.events) == 100


async def test_requests_are_signed_with_both_secrets_after_a_rotation(engine: AsyncEngine) -> None:
    secret = new_secret()
    rotated = store.rotated(secret)
    async with receiving(secret=SECRET) as old, receiving(secret=secret) as new:
        for receiver in (old, new):
            webhook_id = await add_webhook(engine, receiver.url, secret=SECRET)
            await do(engine, partial(store.change, webhook_id=webhook_id, values=rotated))
            await add_tests(engine, webhook_id)
        async with delivering(engine):
            await until_statuses(engine, "delivered", "delivered")
    signatures = old.events[0].request.headers["webhook-signature"].split(" ")
    assert [signature[:3] for signature in signatures] == ["v1,", "v1,"]


async def test_the_old_secret_is_not_used_any_more_after_a_day(engine: AsyncEngine) -> None:
    secret = new_secret()
    async with receiving(secret=secret) as receiver, delivering(engine):
        webhook_id = await add_webhook(engine, receiver.url)
        await do(engine, lambda db: store.change(db, webhook_id, store.rotated(secret)))
        await execute(engine, "UPDATE webhook SET previous_secret_until = now()")
        await add_tests(engine, webhook_id)
        await until_statuses(engine, "delivered")
    assert " " not in receiver.events[0].request.headers["webhook-signature"]


# ---- failures --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_a_failed_attempt_is_repeated_after_a_pause_with_the_same_id(
    engine: AsyncEngine, status: int
) -> None:
    async with receiving(http_response(status), http_response(200)) as receiver:
        webhook_id = await add_webhook(engine, receiver.url)
        await add_tests(engine, webhook_id)
        async with delivering(engine):
            [failed] = await until_attempted(engine)
            assert (failed["status"], failed["error"]) == ("waiting", f"http_{status}")
            assert (await webhook(engine, webhook_id))["failures"] == 1
            pause = failed["attempt_at"] - failed["attempted_at"]
            assert timedelta(seconds=3) < pause < timedelta(seconds=20)
            await execute(engine, "UPDATE webhook_delivery SET attempt_at = now()")
            [done] = await until_statuses(engine, "delivered")
    assert done["attempts"] == 2
    assert len({event.id for event in receiver.events}) == 1
    stored = await webhook(engine, webhook_id)
    assert (stored["failures"], stored["failing_since"]) == (0, None)


async def test_a_pause_that_the_endpoint_asks_for_is_obeyed(engine: AsyncEngine) -> None:
    async with receiving(http_response(503, b"", "Retry-After: 3600")) as receiver:
        await add_tests(engine, await add_webhook(engine, receiver.url))
        async with delivering(engine):
            [failed] = await until_attempted(engine)
    assert failed["attempt_at"] - failed["attempted_at"] > timedelta(minutes=59)


async def test_a_redirect_is_not_followed(engine: AsyncEngine) -> None:
    async with receiving() as target:
        location = f"Location: {target.url}"
        async with receiving(http_response(307, b"", location)) as receiver, delivering(engine):
            await add_tests(engine, await add_webhook(engine, receiver.url))
            [failed] = await until_attempted(engine)
    assert (failed["error"], failed["response_status"]) == ("redirect", 307)
    assert target.events == []


async def test_an_endpoint_that_is_gone_is_disabled_at_once(engine: AsyncEngine) -> None:
    async with receiving(http_response(410)) as receiver, delivering(engine):
        webhook_id = await add_webhook(engine, receiver.url)
        await add_tests(engine, webhook_id)
        await until_attempted(engine)
        await add_tests(engine, webhook_id)
        stored = await webhook(engine, webhook_id)
    assert (stored["is_enabled"], stored["disabled_reason"]) == (False, "gone")
    [entry] = await rows(engine, "SELECT * FROM audit")
    assert (entry["actor_kind"], entry["action"]) == ("system", "webhook_disabled")
    assert (entry["target_kind"], entry["target_id"]) == ("webhook", webhook_id)
    assert entry["after"] == {"enabled": False, "disabled_reason": "gone"}
    assert len(receiver.events) == 1


async def test_an_endpoint_that_fails_for_three_days_is_disabled(engine: AsyncEngine) -> None:
    async with receiving(http_response(500)) as receiver, delivering(engine):
        webhook_id = await add_webhook(engine, receiver.url)
        await execute(
            engine, "UPDATE webhook SET failures = 9, failing_since = now() - interval '3 days'"
        )
        await add_tests(engine, webhook_id)
        await until_attempted(engine)
        stored = await webhook(engine, webhook_id)
    assert (stored["is_enabled"], stored["disabled_reason"]) == (False, "failing")
    assert await value(engine, "SELECT count(*) FROM audit") == 1


async def test_a_delivery_ends_as_failed_after_its_last_attempt(engine: AsyncEngine) -> None:
    async with receiving(http_response(500)) as receiver:
        await add_tests(engine, await add_webhook(engine, receiver.url))
        await execute(engine, "UPDATE webhook_delivery SET attempts = 9")
        async with delivering(engine):
            [failed] = await until_statuses(engine, "failed")
    assert (failed["attempts"], failed["error"]) == (10, "http_500")


async def test_a_reset_and_a_refused_connection_are_failures(engine: AsyncEngine) -> None:
    async def close(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_request(reader)

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        async with served(close) as closing, delivering(engine):
            for url in (closing, refused):
                await add_tests(engine, await add_webhook(engine, url))
            found = await until_attempted(engine, 2)
    assert [row["error"] for row in found] == ["connection_lost", "connection_failed"]


async def test_an_answer_that_is_no_http_is_a_failure(engine: AsyncEngine) -> None:
    async with receiving(b"\x16\x03 what\r\n\r\n") as receiver, delivering(engine):
        await add_tests(engine, await add_webhook(engine, receiver.url))
        [failed] = await until_attempted(engine)
    assert (failed["error"], failed["response_status"]) == ("bad_response", None)


async def test_long_headers_are_a_failure(engine: AsyncEngine) -> None:
    answer = http_response(200, b"", f"X-Long: {'x' * 100_000}")
    async with receiving(answer) as receiver, delivering(engine):
        await add_tests(engine, await add_webhook(engine, receiver.url))
        [failed] = await until_attempted(engine)
    assert failed["error"] == "bad_response"


async def test_the_status_counts_whatever_the_body_is(engine: AsyncEngine) -> None:
    async def stream_for_ever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            await writer.drain()

    async def stop_in_the_middle(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
        await writer.drain()
        await asyncio.Event().wait()

    async with (
        served(stream_for_ever) as endless,
        served(stop_in_the_middle) as stopping,
        receiving(http_response(200, b"x" * 1_000_000)) as huge,
        delivering(engine),
    ):
        for url in (endless, stopping, huge.url):
            await add_tests(engine, await add_webhook(engine, url))
        await until_statuses(engine, *["delivered"] * 3)


async def test_dead_and_slow_endpoints_delay_no_other(engine: AsyncEngine) -> None:
    async def never_answer(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await asyncio.Event().wait()

    async with served(never_answer) as slow, receiving() as receiver:
        with server_with_full_backlog() as dead:
            for url in (slow, dead, slow, dead):
                await add_tests(engine, await add_webhook(engine, url), 30)
            webhook_id = await add_webhook(engine, receiver.url)
            await add_tests(engine, webhook_id, 50)
            async with delivering(engine):
                await receiver.until_received(50)
    open_ones = [row for row in await deliveries(engine) if row["webhook_id"] != webhook_id]
    assert {row["status"] for row in open_ones} == {"waiting"}


async def test_an_endpoint_that_does_not_answer_times_out(engine: AsyncEngine) -> None:
    async def never_answer(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await asyncio.Event().wait()

    async with served(never_answer) as url, delivering(engine, LOOPBACK, SHORT):
        await add_tests(engine, await add_webhook(engine, url))
        [failed] = await until_attempted(engine)
    assert failed["error"] == "timeout"


async def test_a_failing_endpoint_gets_one_request_at_a_time(engine: AsyncEngine) -> None:
    async with receiving(http_response(500), delay=0.05) as receiver:
        webhook_id = await add_webhook(engine, receiver.url)
        await execute(engine, "UPDATE webhook SET failures = 1, failing_since = now()")
        await add_tests(engine, webhook_id, 5)
        async with delivering(engine):
            await receiver.until_received(2)
    assert receiver.most_in_flight == 1


# ---- addresses -------------------------------------------------------------------------------


async def test_a_private_address_gets_no_request(engine: AsyncEngine) -> None:
    async with receiving() as receiver, delivering(engine, AddressPolicy()):
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[::1]"):
            url = receiver.url.replace("127.0.0.1", host)
            await add_tests(engine, await add_webhook(engine, url))
        found = await until_attempted(engine, 4)
    assert {row["error"] for row in found} == {"private_address"}
    assert receiver.events == []
    assert receiver.connections == 0


async def test_a_name_that_turns_private_gets_no_request(engine: AsyncEngine) -> None:
    answers = [["127.0.0.1"], ["127.0.0.1"]]
    asked = []

    async def rebind(host: str, _: int) -> list[str]:
        asked.append(host)
        return ["203.0.114.1"] if len(asked) == 1 else answers.pop()

    policy = AddressPolicy(resolve=rebind)
    assert await policy.find("shop.example", 80)  # as at the creation
    async with receiving() as receiver, delivering(engine, policy):
        url = receiver.url.replace("127.0.0.1", "shop.example")
        await add_tests(engine, await add_webhook(engine, url))
        [failed] = await until_attempted(engine)
    assert failed["error"] == "private_address"
    assert receiver.connections == 0
    assert len(asked) == 2


async def test_a_connection_goes_to_the_address_that_was_checked(engine: AsyncEngine) -> None:
    asked = []

    async def resolve(host: str, _: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    async with receiving() as receiver:
        policy = AddressPolicy(allows_private=True, resolve=resolve)
        async with delivering(engine, policy):
            url = receiver.url.replace("127.0.0.1", "shop.example")  # no resolver knows it
            await add_tests(engine, await add_webhook(engine, url))
            await until_statuses(engine, "delivered")
    assert asked == ["shop.example"]
    assert receiver.events[0].request.headers["host"].startswith("shop.example:")


async def test_an_unknown_host_is_a_failure(engine: AsyncEngine) -> None:
    async def resolve(_: str, __: int) -> list[str]:
        raise socket.gaierror

    policy = AddressPolicy(resolve=resolve)
    async with delivering(engine, policy):
        await add_tests(engine, await add_webhook(engine, "http://shop.example/"))
        [failed] = await until_attempted(engine)
    assert failed["error"] == "unknown_host"


# ---- claims, bounds and expiry ---------------------------------------------------------------


async def test_a_delivery_of_a_dead_worker_is_due_again_when_its_lease_expires(
    engine: AsyncEngine,
) -> None:
    webhook_id = await add_webhook(engine, "http://127.0.0.1/")
    await add_tests(engine, webhook_id)
    [claimed] = await do(engine, lambda db: queue.claim(db, {webhook_id: 5}))
    assert await do(engine, lambda db: queue.claim(db, {webhook_id: 5})) == []
    await execute(engine, "UPDATE webhook_delivery SET attempt_at = now()")
    [again] = await do(engine, lambda db: queue.claim(db, {webhook_id: 5}))
    assert (again.id, again.attempts) == (claimed.id, 2)
    late = queue.DeliveryResult(claimed, "timeout", None, 5.0)
    assert await do(engine, lambda db: queue.record_results(db, [late])) == []


async def test_a_stopping_worker_releases_what_it_has_not_sent(engine: AsyncEngine) -> None:
    async with receiving(delay=60) as receiver:
        await add_tests(engine, await add_webhook(engine, receiver.url), 10)
        async with delivering(engine):
            await receiver.until_received(MAX_REQUESTS)
    attempts = sorted(row["attempts"] for row in await deliveries(engine))
    assert attempts == [0] * (10 - MAX_REQUESTS) + [1] * MAX_REQUESTS


async def test_a_disabled_endpoint_gets_nothing_until_it_is_enabled(engine: AsyncEngine) -> None:
    async with receiving() as receiver:
        webhook_id = await add_webhook(engine, receiver.url)
        await add_tests(engine, webhook_id)
        await do(engine, lambda db: store.change(db, webhook_id, store.disabled("user")))
        async with delivering(engine) as delivery:
            assert await delivery.do_round() is False
            assert receiver.events == []
            await do(engine, lambda db: store.change(db, webhook_id, store.ENABLED))
            await receiver.until_received(1)


async def test_a_restored_database_delivers_nothing_until_it_may_send(engine: AsyncEngine) -> None:
    await add_webhook(engine, "http://127.0.0.1/")
    assert await do(engine, queue.read_endpoints)
    await execute(engine, "SELECT update_origin()")
    await execute(
        engine,
        "UPDATE origin SET held_since = now(),"
        " written_by = pg_current_xact_id()::xid::text::bigint",
    )
    assert await do(engine, queue.read_endpoints) == []


async def test_a_backlog_is_bounded_and_what_is_dropped_is_counted(engine: AsyncEngine) -> None:
    webhook_id = await add_webhook(engine, "http://127.0.0.1/")
    await execute(
        engine,
        f"""INSERT INTO webhook_delivery (webhook_id, event_id)
        SELECT {webhook_id}, gen_random_uuid()
        FROM generate_series(1, {queue.MAX_WAITING_DELIVERIES + 7})""",  # noqa: S608  # numbers
    )
    assert await do(engine, lambda db: queue.drop_beyond_limit(db, 5)) == {webhook_id: 5}
    assert await do(engine, lambda db: queue.drop_beyond_limit(db, 5)) == {webhook_id: 2}
    assert await do(engine, lambda db: queue.drop_beyond_limit(db, 5)) == {}
    [row] = await rows(
        engine,
        "SELECT max(id) < (SELECT min(id) FROM webhook_delivery WHERE status = 'waiting') AS first,"
        " count(*) AS dropped FROM webhook_delivery WHERE status = 'failed' AND error = 'dropped'",
    )
    assert (row["first"], row["dropped"]) == (True, 7)
    assert (await webhook(engine, webhook_id))["dropped"] == 7
    assert await do(engine, queue.count_waiting) == (queue.MAX_WAITING_DELIVERIES, 0)


async def test_old_deliveries_fail_and_are_deleted_a_day_later(engine: AsyncEngine) -> None:
    webhook_id = await add_webhook(engine, "http://127.0.0.1/")
    await add_tests(engine, webhook_id, 2)
    first = await value(engine, "SELECT min(id) FROM webhook_delivery")
    assert await do(engine, lambda db: queue.expire(db, 10)) == 0
    for days, events in ((3, 2), (4, 1)):
        await execute(
            engine,
            f"""UPDATE webhook_event SET created_at = now() - interval '{days} days 1 second'
            WHERE id = (SELECT event_id FROM webhook_delivery WHERE id = {first})""",  # noqa: S608  # numbers
            f"""UPDATE webhook_delivery SET created_at = now() - interval '{days} days 1 second'
            WHERE id = {first}""",  # noqa: S608  # numbers
        )
        await do(engine, lambda db: queue.expire(db, 10))
        await do(engine, lambda db: queue.purge(db, 10))
        assert await value(engine, "SELECT count(*) FROM webhook_event") == events
        assert await value(engine, "SELECT count(*) FROM webhook_delivery") == events
        if days == 3:
            failed = (await deliveries(engine))[0]
            assert (failed["status"], failed["error"]) == ("failed", "expired")
