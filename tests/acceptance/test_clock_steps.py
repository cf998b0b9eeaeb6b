"""Setting the wall clock of a running process breaks no promise about time."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from tests.acceptance.test_users import HEADERS, PASSWORD, sign_in_status
from tests.event_timeout import EVENT_TIMEOUT
from tests.processes import Gateways, LoopLag, MailerProcess, Mailers, run, until
from tests.wall_clock import WallClock

from mailer.sample_data import new_mailing

HOUR = 3600.0
MINUTE = 60.0
BLOCK_SIGN_IN = """
    UPDATE login_throttle
    SET failures = 20, blocked_until = clock_timestamp() + interval '1 hour'"""


@pytest.fixture
def wall_clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


async def steps_logged(mailer: MailerProcess, count: int) -> list[float]:
    """Wait until `count` steps of the wall clock are logged, and return them in seconds."""

    async def find_steps() -> list[float] | None:
        events = [event for event in mailer.events if event["event"] == "wall_clock_stepped"]
        return [event["seconds"] for event in events] if len(events) >= count else None

    return await until(find_steps)


async def test_step_of_the_wall_clock_expires_no_message_and_is_logged_and_counted(
    start_gateway: Gateways, start_mailer: Mailers, wall_clock: WallClock
) -> None:
    gateway = await start_gateway(latency=0.05)
    mailer = await start_mailer(wall_clock, **gateway.settings, gateway_concurrency="4")
    await mailer.create_clients(100)
    steps: list[float] = []
    for after in (HOUR, 0, 400 * 24 * HOUR, -HOUR):
        created = await mailer.call("POST", "/mailings", new_mailing(lasts=30 * MINUTE), 201)
        await gateway.until_received(len(steps) * 100 + 20)
        steps.append(after - sum(steps))
        wall_clock.set(after)
        logged = await steps_logged(mailer, len(steps))
        assert logged == [pytest.approx(step, abs=MINUTE) for step in steps]
        finished = await mailer.finished(created["id"])
        assert finished["delivered_messages"] == 100
    assert len(gateway.ids) == len(set(gateway.ids)) == 400
    async with mailer.session.get("/metrics") as answer:
        assert 'mailer_clock_steps_total{clock="wall"} 4.0' in await answer.text()


async def test_no_request_starts_after_the_end_although_the_wall_clock_was_set_back(
    start_gateway: Gateways, start_mailer: Mailers, wall_clock: WallClock, lag: LoopLag
) -> None:
    gateway = await start_gateway(latency=0.02)
    mailer = await start_mailer(wall_clock, **gateway.settings, gateway_concurrency="4")
    await mailer.create_clients(10_000)
    mailing = new_mailing(lasts=5)
    end = datetime.fromisoformat(mailing["datetime_end"])
    created = await mailer.call("POST", "/mailings", mailing, 201)
    await gateway.until_received(20)
    await asyncio.sleep((end - datetime.now(UTC)).total_seconds() - 0.5)
    before = len(gateway.received)

    wall_clock.set(-HOUR)
    finished = await mailer.finished(created["id"])
    last = max(request.arrived for request in gateway.received)
    assert last < (end.timestamp() + lag.longest) * 1e6
    assert 0 < before < 10_000
    assert finished["cancelled_messages"] > 0
    # the delivery of requests aborted at the end is unknown
    statuses = ("delivered", "cancelled", "unknown")
    assert sum(finished[f"{status}_messages"] for status in statuses) == 10_000


async def test_many_clock_steps_lose_and_repeat_no_message(
    start_gateway: Gateways, start_mailer: Mailers, wall_clock: WallClock
) -> None:
    gateway = await start_gateway(latency=0.02)
    mailer = await start_mailer(wall_clock, **gateway.settings, gateway_concurrency="4")
    await mailer.create_clients(400)
    window = {"send_interval_time_start": "00:00", "send_interval_time_end": "23:59:59"}
    created = await mailer.call("POST", "/mailings", new_mailing(lasts=10 * MINUTE) | window, 201)
    rng = random.Random(14)  # noqa: S311  # no secret

    async with asyncio.timeout(EVENT_TIMEOUT):
        while await mailer.query("SELECT status FROM mailing") != "finished":
            wall_clock.set(rng.choice((2, 60, HOUR, 30 * HOUR)) * rng.choice((1, -1)))
            await asyncio.sleep(0.1)
    finished = await mailer.mailing(created["id"])
    assert finished["delivered_messages"] == 400
    assert gateway.sandbox.counts.repeats == gateway.sandbox.counts.overlaps == 0


async def test_periodic_jobs_continue_after_a_clock_step(
    start_mailer: Mailers, wall_clock: WallClock
) -> None:
    mailer = await start_mailer(wall_clock)

    async def is_purged() -> bool | None:
        return not await mailer.query("SELECT count(*) FROM mailing") or None

    for number, after in enumerate((HOUR, -HOUR), 1):
        created = await mailer.call("POST", "/mailings", new_mailing(starts_in=HOUR), 201)
        wall_clock.set(after)
        await steps_logged(mailer, number)
        await mailer.call("DELETE", f"/mailings/{created['id']}", status=204)
        await until(is_purged)
        ages = await task_ages(mailer)
        assert {"rescue_messages", "purge_mailings", "merge_counters"} <= ages.keys()
        assert {"downsample_counters", "delete_expired"} <= ages.keys()
        assert {"watch_running_mailings", "claim"} <= ages.keys()
        assert all(0 <= age < HOUR / 2 for age in ages.values())


async def task_ages(mailer: MailerProcess) -> dict[str, float]:
    """Return the seconds since the last success of each periodic task."""
    async with mailer.session.get("/metrics") as response:
        metrics = await response.text()
    assert 'mailer_job_failures_total{name="rescue_messages"} 0.0' in metrics
    return {
        line.split('"')[1]: float(line.split()[1])
        for line in metrics.splitlines()
        if line.startswith("mailer_job_last_success_age_seconds{")
    }


async def test_pause_of_the_gateway_ends_although_the_clock_was_set_back(
    start_gateway: Gateways, start_mailer: Mailers, wall_clock: WallClock
) -> None:
    gateway = await start_gateway(rate_limit=20)
    mailer = await start_mailer(wall_clock, **gateway.settings)
    await mailer.create_clients(60)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await mailer.event("breaker_opened")
    wall_clock.set(-HOUR)
    assert (await mailer.finished(created["id"]))["delivered_messages"] == 60


async def test_api_uses_the_clock_of_the_database(
    start_mailer: Mailers, wall_clock: WallClock
) -> None:
    mailer = await start_mailer(wall_clock)
    await mailer.create_clients(1)  # without a gateway nothing is sent
    running = await mailer.call("POST", "/mailings", new_mailing(lasts=30 * MINUTE), 201)
    key = {"Idempotency-Key": "a-key"}

    async def repeat() -> str | None:
        body = {"phone": "79161234567"}
        async with mailer.session.post("/api/v1/clients", json=body, headers=key) as response:
            assert response.status == 201
            return response.headers.get("Idempotency-Replayed")

    assert await repeat() is None
    for step in (48 * HOUR, -48 * HOUR):
        wall_clock.set(step)
        assert await repeat() == "true"
        path = f"/mailings/{running['id']}"
        end = datetime.now(UTC) + timedelta(hours=1)
        await mailer.call("PATCH", path, {"datetime_end": end.isoformat()})
        await mailer.call("POST", f"{path}/pause")
        await mailer.call("POST", f"{path}/resume")
        await mailer.call("POST", "/mailings", new_mailing(lasts=MINUTE), 201)
        ended = new_mailing(starts_in=-2 * HOUR, lasts=HOUR)
        await mailer.call("POST", "/mailings", ended, 400)


async def test_sessions_and_throttles_do_not_depend_on_the_wall_clock(
    start_mailer: Mailers, database_url: str, wall_clock: WallClock
) -> None:
    arguments = ("users", "create", "ann", "--role", "admin")
    assert run(*arguments, given=f"{PASSWORD}\n", database_url=database_url).returncode == 0
    mailer = await start_mailer(wall_clock, auth="required")
    form = {"name": "ann", "password": PASSWORD}
    sign_in = mailer.session.post("/login", data=form, headers=HEADERS, allow_redirects=False)
    async with sign_in as response:
        assert response.status == 303
        cookie = response.headers["Set-Cookie"].partition(";")[0]

    async def is_signed_in() -> bool:
        own_page = mailer.session.get(
            "/profile", headers=HEADERS | {"Cookie": cookie}, allow_redirects=False
        )
        async with own_page as response:
            return response.status == 200

    assert await is_signed_in()
    assert await sign_in_status(mailer, "ben", "wrong") == 400
    await mailer.query(BLOCK_SIGN_IN)
    assert await sign_in_status(mailer, "ben", "wrong") == 429
    for before, after in pairwise((0.0, 400 * 24 * HOUR, -HOUR, 0.0)):
        assert before != after
        wall_clock.set(after)
        assert await is_signed_in()
        assert await sign_in_status(mailer, "ben", "wrong") == 429
