"""What mailer promises when the audience is large, time is short, or the process must go."""

import signal
from datetime import datetime
from statistics import median
from typing import Any

from tests.acceptance.conftest import Gateway, Gateways, MailerProcess, Mailers, until
from tests.acceptance.test_main_job import a_mailing, add_clients

from mailer.db.engine import connect

AUDIENCE = 12_000
ADD_AUDIENCE = """
    INSERT INTO client (phone, operator_code)
    SELECT '7916' || lpad(n::text, 7, '0'), '916' FROM generate_series(1, $1::int) AS n
    RETURNING id"""
PROMPT = 0.3
"""Seconds, well under what waiting for the poll takes."""


async def query(mailer: MailerProcess, statement: str, *values: object) -> Any:
    connection = await connect(mailer.database_url)
    try:
        return await connection.fetchval(statement, *values)
    finally:
        await connection.close()


async def until_taken(gateway: Gateway, count: int) -> None:
    async def look() -> bool | None:
        return len(gateway.taken) >= count or None

    await until(look)


async def test_large_audience_is_sent_to_while_it_is_taken_and_survives_a_kill(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.02)
    settings = gateway.settings | {"gateway_concurrency": "50", "gateway_timeout": "1"}
    mailer = await start_mailer(**settings, lease="3")
    await query(mailer, ADD_AUDIENCE, AUDIENCE)
    created = await mailer.call("POST", "/mailings", a_mailing(), 201)
    await until_taken(gateway, 100)
    await mailer.stop(signal.SIGKILL)
    held = await query(mailer, "SELECT count(*) FROM message WHERE status = 'sending'")

    second = await start_mailer(**settings, lease="3")
    mailing = await second.finished(created["id"])

    last_chunk = await query(second, "SELECT max(created_at) FROM message")
    assert gateway.taken[0].arrived < last_chunk.timestamp() * 1e6
    assert mailing["clients_count"] == mailing["delivered_messages"] == AUDIENCE
    assert await query(second, "SELECT count(DISTINCT client_id) FROM message") == AUDIENCE
    assert len(set(gateway.ids)) == AUDIENCE
    assert gateway.sandbox.counts.repeats <= held  # whose outcome was not recorded yet


async def test_due_mailing_is_sent_at_once_and_a_future_one_at_its_start(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await add_clients(mailer, 2)

    async def first_arrival(mailing_id: int) -> float:
        mailing = await mailer.finished(mailing_id)
        ids = {message["id"] for message in mailing["mailing_messages"]}
        return min(taken.arrived for taken in gateway.taken if taken.id in ids) / 1e6

    due, future = [], []
    for _ in range(3):
        created = await mailer.call("POST", "/mailings", a_mailing(), 201)
        answered_at = datetime.now().astimezone().timestamp()
        due.append(await first_arrival(created["id"]) - answered_at)
    for _ in range(2):
        created = await mailer.call("POST", "/mailings", a_mailing(starts_in=1), 201)
        start = datetime.fromisoformat(created["datetime_start"]).timestamp()
        future.append(await first_arrival(created["id"]) - start)

    assert min(future) >= 0
    assert median(due + future) < PROMPT, (due, future)


async def test_stop_outlasts_neither_the_rate_nor_the_grace(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=2)
    mailer = await start_mailer(**gateway.settings, gateway_rate="5", shutdown_grace="1")
    await add_clients(mailer, 60)
    await mailer.call("POST", "/mailings", a_mailing(), 201)
    await until_taken(gateway, 3)

    assert await mailer.stop() == 0

    assert await query(mailer, "SELECT count(*) FROM message WHERE status = 'sending'") == 0
    assert await query(mailer, "SELECT count(*) FROM message WHERE status = 'scheduled'") > 0
