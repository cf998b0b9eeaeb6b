"""A process whose wall clock is set while it runs: every promise of time rests on another clock."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from tests.acceptance.test_main_job import a_mailing, add_clients
from tests.acceptance.test_users import HEADERS, PASSWORD, status
from tests.patience import PATIENCE
from tests.processes import Gateways, LoopLag, MailerProcess, Mailers, run, until
from tests.wall_clock import WallClock

HOUR = 3600.0
MINUTE = 60.0
BLOCK = "UPDATE throttle SET failures = 20, blocked_until = clock_timestamp() + interval '1 hour'"


@pytest.fixture
def wall_clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


async def steps_logged(mailer: MailerProcess, count: int) -> list[float]:
    """Wait until so many steps of the wall clock are logged, and return them."""

    async def find() -> list[float] | None:
        events = [event for event in mailer.events if event["event"] == "wall_clock_stepped"]
        return [event["seconds"] for event in events] if len(events) >= count else None

    return await until(find)


async def test_a_step_of_the_wall_clock_expires_no_message_and_is_logged_and_counted(
    start_gateway: Gateways, start_mailer: Mailers, wall_clock: WallClock
) -> None:
    gateway = await start_gateway(latency=0.05)
    mailer = await start_mailer(wall_clock, **gateway.settings, gateway_concurrency="4")
    await add_clients(mailer, 100)
    steps: list[float] = []
    for after in (HOUR, 0, 400 * 24 * HOUR, -HOUR):
        created = await mailer.call("POST", "/mailings", a_mailing(lasts=30 * MINUTE), 201)
        await gateway.until_taken(len(steps) * 100 + 20)
        steps.append(after - sum(steps))
        wall_clock.set(after)
        logged = await steps_logged(mailer, len(steps))
        assert logged == [pytest.approx(step, abs=MINUTE) for step in steps]
        finished = await mailer.finished(created["id"])
        assert finished["delivered_messages"] == 100
    assert len(gateway.ids) == len(set(gateway.ids)) == 400
    async with mailer.session.get("/metrics") as answer:
        assert 'mailer_clock_steps_total{clock="wall"} 4.0' in await answer.text()


async def test_no_request_starts_after_an_end_before_which_the_wall_clock_is_set_back(
    start_gateway: Gateways, start_mailer: Mailers, wall_clock: WallClock, lag: LoopLag
) -> None:
    gateway = await start_gateway(latency=0.02)
    mailer = await start_mailer(wall_clock, **gateway.settings, gateway_concurrency="4")
    await add_clients(mailer, 10_000)
    mailing = a_mailing(lasts=5)
    end = datetime.fromisoformat(mailing["datetime_end"])
    created = await mailer.call("POST", "/mailings", mailing, 201)
    await gateway.until_taken(20)
    await asyncio.sleep((end - datetime.now(UTC)).total_seconds() - 0.5)
    before = len(gateway.taken)

    wall_clock.set(-HOUR)
    finished = await mailer.finished(created["id"])
    assert max(taken.arrived for taken in gateway.taken) < (end.timestamp() + lag.longest) * 1e6
    assert 0 < before < 10_000
    assert finished["cancelled_messages"] > 0
    # a request that is cut at the end leaves its delivery unknown
    ended = ("delivered", "cancelled", "unknown")
    assert sum(finished[f"{status}_messages"] for status in ended) == 10_000


async def test_steps_under_load_change_nothing_of_what_is_sent(
    start_gateway: Gateways, start_mailer: Mailers, wall_clock: WallClock
) -> None:
    gateway = await start_gateway(latency=0.02)
    mailer = await start_mailer(wall_clock, **gateway.settings, gateway_concurrency="4")
    await add_clients(mailer, 400)
    window = {"send_interval_time_start": "00:00", "send_interval_time_end": "23:59:59"}
    created = await mailer.call("POST", "/mailings", a_mailing(lasts=10 * MINUTE) | window, 201)
    dice = random.Random(14)  # noqa: S311  # no secret

    async with asyncio.timeout(PATIENCE):
        while await mailer.query("SELECT status FROM mailing") != "finished":
            wall_clock.set(dice.choice((2, 60, HOUR, 30 * HOUR)) * dice.choice((1, -1)))
            await asyncio.sleep(0.1)
    finished = await mailer.mailing(created["id"])
    assert finished["delivered_messages"] == 400
    assert gateway.sandbox.counts.repeats == gateway.sandbox.counts.overlaps == 0


async def test_periodic_jobs_go_on_after_a_step(
    start_mailer: Mailers, wall_clock: WallClock
) -> None:
    mailer = await start_mailer(wall_clock)

    async def is_purged() -> bool | None:
        return not await mailer.query("SELECT count(*) FROM mailing") or None

    for number, after in enumerate((HOUR, -HOUR), 1):
        created = await mailer.call("POST", "/mailings", a_mailing(starts_in=HOUR), 201)
        wall_clock.set(after)
        await steps_logged(mailer, number)
        await mailer.call("DELETE", f"/mailings/{created['id']}", status=204)
        await until(is_purged)
        ages = await ages_of_jobs(mailer)
        assert {"rescue", "purge", "fold", "coarsen", "clear", "watch", "claim"} <= ages.keys()
        assert all(0 <= age < HOUR / 2 for age in ages.values())


async def ages_of_jobs(mailer: MailerProcess) -> dict[str, float]:
    """Return how long ago each periodic job has succeeded, in seconds."""
    async with mailer.session.get("/metrics") as answer:
        shown = await answer.text()
    assert 'mailer_job_failures_total{name="rescue"} 0.0' in shown
    return {
        line.split('"')[1]: float(line.split()[1])
        for line in shown.splitlines()
        if line.startswith("mailer_job_last_success_age_seconds{")
    }


async def test_a_gateway_that_asked_for_a_pause_is_tried_again_after_a_step_back(
    start_gateway: Gateways, start_mailer: Mailers, wall_clock: WallClock
) -> None:
    gateway = await start_gateway(rate_limit=20)
    mailer = await start_mailer(wall_clock, **gateway.settings)
    await add_clients(mailer, 60)
    created = await mailer.call("POST", "/mailings", a_mailing(), 201)
    await mailer.event("breaker_opened")
    wall_clock.set(-HOUR)
    assert (await mailer.finished(created["id"]))["delivered_messages"] == 60


async def test_what_the_api_asks_of_time_is_asked_of_the_database(
    start_mailer: Mailers, wall_clock: WallClock
) -> None:
    mailer = await start_mailer(wall_clock)
    await add_clients(mailer, 1)  # to whom nothing is sent, without a gateway
    running = await mailer.call("POST", "/mailings", a_mailing(lasts=30 * MINUTE), 201)
    key = {"Idempotency-Key": "a-key"}

    async def repeat() -> str | None:
        body = {"phone": "79161234567"}
        async with mailer.session.post("/api/v1/clients", json=body, headers=key) as answer:
            assert answer.status == 201
            return answer.headers.get("Idempotency-Replayed")

    assert await repeat() is None
    for step in (48 * HOUR, -48 * HOUR):
        wall_clock.set(step)
        assert await repeat() == "true"
        path = f"/mailings/{running['id']}"
        end = datetime.now(UTC) + timedelta(hours=1)
        await mailer.call("PATCH", path, {"datetime_end": end.isoformat()})
        await mailer.call("POST", f"{path}/pause")
        await mailer.call("POST", f"{path}/resume")
        await mailer.call("POST", "/mailings", a_mailing(lasts=MINUTE), 201)
        ended = a_mailing(starts_in=-2 * HOUR, lasts=HOUR)
        await mailer.call("POST", "/mailings", ended, 400)


async def test_sessions_and_throttles_last_as_long_whatever_the_wall_clock_shows(
    start_mailer: Mailers, database_url: str, wall_clock: WallClock
) -> None:
    words = ("users", "add", "ann", "--role", "admin")
    assert run(*words, given=f"{PASSWORD}\n", database_url=database_url).returncode == 0
    mailer = await start_mailer(wall_clock, auth="required")
    form = {"name": "ann", "password": PASSWORD}
    posted = mailer.session.post("/login", data=form, headers=HEADERS, allow_redirects=False)
    async with posted as answer:
        assert answer.status == 303
        cookie = answer.headers["Set-Cookie"].partition(";")[0]

    async def is_signed_in() -> bool:
        headers = HEADERS | {"Cookie": cookie}
        async with mailer.session.get("/account", headers=headers, allow_redirects=False) as answer:
            return answer.status == 200

    assert await is_signed_in()
    assert await status(mailer, "ben", "wrong") == 400
    await mailer.query(BLOCK)
    assert await status(mailer, "ben", "wrong") == 429
    for before, after in pairwise((0.0, 400 * 24 * HOUR, -HOUR, 0.0)):
        assert before != after
        wall_clock.set(after)
        assert await is_signed_in()
        assert await status(mailer, "ben", "wrong") == 429
