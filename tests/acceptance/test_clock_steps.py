"""Setting the wall clock of a running mailer process breaks no promise about time.

mailer takes the time from the database. The database and the gateway keep the true time here.
"""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.acceptance.test_users import HEADERS, PASSWORD, sign_in_status
from tests.event_timeout import EVENT_TIMEOUT
from tests.processes import Gateways, LoopLag, MailerProcess, Mailers, run, until, until_true
from tests.wall_clock import WallClock

from mailer.sample_data import new_mailing

MINUTE = 60.0  # seconds
HOUR = 60 * MINUTE
DAY = 24 * HOUR
BLOCK_SIGN_IN = """
    UPDATE login_throttle
    SET failures = 20, blocked_until = clock_timestamp() + interval '1 hour'"""


@pytest.fixture
def wall_clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


async def steps_logged(mailer: MailerProcess, count: int) -> list[float]:
    """Wait until `count` changes of the wall clock are logged; return their sizes in seconds."""

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
    for offset in (HOUR, 0, 400 * DAY, -HOUR):  # seconds by which the clock will be wrong
        created = await mailer.call("POST", "/mailings", new_mailing(lasts=30 * MINUTE), 201)
        await gateway.until_received(len(steps) * 100 + 20)  # in the middle of this mailing
        previous_offset = sum(steps)
        steps.append(offset - previous_offset)
        wall_clock.set(offset)
        logged = await steps_logged(mailer, len(steps))
        assert logged == [pytest.approx(step, abs=MINUTE) for step in steps]
        finished = await mailer.finished(created["id"])
        assert finished["delivered_messages"] == 100
    assert len(gateway.ids) == len(set(gateway.ids)) == 400
    async with mailer.session.get("/metrics") as metrics:
        assert 'mailer_clock_steps_total{clock="wall"} 4.0' in await metrics.text()


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
    half_a_second_before_the_end = (end - datetime.now(UTC)).total_seconds() - 0.5
    await asyncio.sleep(half_a_second_before_the_end)
    received_before = len(gateway.received)

    wall_clock.set(-HOUR)
    finished = await mailer.finished(created["id"])
    last_arrival = max(request.arrived for request in gateway.received)  # microseconds
    assert last_arrival < (end.timestamp() + lag.longest) * 1e6
    assert 0 < received_before < 10_000
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
    nearly_all_day = {"send_interval_time_start": "00:00", "send_interval_time_end": "23:59:59"}
    body = new_mailing(lasts=10 * MINUTE) | nearly_all_day
    created = await mailer.call("POST", "/mailings", body, 201)
    random_numbers = random.Random(14)  # noqa: S311  # no secret

    async with asyncio.timeout(EVENT_TIMEOUT):
        while await mailer.query("SELECT status FROM mailing") != "finished":
            offset = random_numbers.choice((2, MINUTE, HOUR, 30 * HOUR))  # seconds
            wall_clock.set(offset * random_numbers.choice((1, -1)))
            await asyncio.sleep(0.1)
    finished = await mailer.mailing(created["id"])
    assert finished["delivered_messages"] == 400
    assert gateway.sandbox.counts.repeats == gateway.sandbox.counts.overlaps == 0


async def test_periodic_jobs_continue_after_a_clock_step(
    start_mailer: Mailers, wall_clock: WallClock
) -> None:
    mailer = await start_mailer(wall_clock)

    async def is_purged() -> bool:
        return not await mailer.query("SELECT count(*) FROM mailing")

    for step_count, offset in enumerate((HOUR, -HOUR), 1):
        created = await mailer.call("POST", "/mailings", new_mailing(starts_in=HOUR), 201)
        wall_clock.set(offset)
        await steps_logged(mailer, step_count)
        await mailer.call("DELETE", f"/mailings/{created['id']}", status=204)
        await until_true(is_purged)
        ages = await success_ages(mailer)
        assert {"rescue_messages", "purge_mailings", "merge_counters"} <= ages.keys()
        assert {"downsample_counters", "delete_expired"} <= ages.keys()
        assert {"watch_running_mailings", "claim"} <= ages.keys()
        assert all(0 <= age < HOUR / 2 for age in ages.values())


async def success_ages(mailer: MailerProcess) -> dict[str, float]:
    """Return the seconds since the last success of each periodic job, by name."""
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
    gateway = await start_gateway(rate_limit=20)  # more requests a second get a pause
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
    key = {"Idempotency-Key": "a-key"}  # valid for a day

    async def is_replay() -> bool:
        """Create the same client again; return whether the response is the stored one."""
        body = {"phone": "79161234567"}
        async with mailer.session.post("/api/v1/clients", json=body, headers=key) as response:
            assert response.status == 201
            return response.headers.get("Idempotency-Replayed") == "true"

    assert not await is_replay()
    for offset in (2 * DAY, -2 * DAY):
        wall_clock.set(offset)
        assert await is_replay()
        path = f"/mailings/{running['id']}"
        end = datetime.now(UTC) + timedelta(hours=1)
        await mailer.call("PATCH", path, {"datetime_end": end.isoformat()})
        await mailer.call("POST", f"{path}/pause")
        await mailer.call("POST", f"{path}/resume")
        await mailer.call("POST", "/mailings", new_mailing(lasts=MINUTE), 201)
        already_ended = new_mailing(starts_in=-2 * HOUR, lasts=HOUR)
        await mailer.call("POST", "/mailings", already_ended, 400)


async def test_sessions_and_throttles_do_not_depend_on_the_wall_clock(
    start_mailer: Mailers, database_url: str, wall_clock: WallClock
) -> None:
    arguments = ("users", "create", "ann", "--role", "admin")
    assert run(*arguments, stdin=f"{PASSWORD}\n", database_url=database_url).returncode == 0
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
    for offset in (400 * DAY, -HOUR, 0.0):
        wall_clock.set(offset)
        assert await is_signed_in()
        assert await sign_in_status(mailer, "ben", "wrong") == 429
