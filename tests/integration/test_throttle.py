"""Passwords cannot be guessed: waits double for who tries, from where, and for whom."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.sample import execute, value

from mailer.access import clearing, throttle
from mailer.access.throttle import Attempt, ThrottledError
from mailer.dispatch.schedule import jobs
from mailer.settings import Settings

HERE, THERE = "192.0.2.1", "192.0.2.2"
OPEN_AGAIN = "UPDATE throttle SET blocked_until = clock_timestamp()"


async def attempt(engine: AsyncEngine, name: str = "ann", address: str = HERE) -> Attempt:
    async with engine.begin() as connection:
        return await throttle.count(connection, name, address)


async def wait(engine: AsyncEngine, name: str = "ann", address: str = HERE) -> int:
    """Return the seconds that one has to wait; an attempt that is let through counts."""
    try:
        await attempt(engine, name, address)
    except ThrottledError as error:
        return error.seconds
    return 0


async def test_five_failures_are_free_and_then_waits_double_up_to_fifteen_minutes(
    engine: AsyncEngine,
) -> None:
    assert [await wait(engine) for _ in range(5)] == [0] * 5
    found = []
    for _ in range(13):
        found.append(await wait(engine))
        await execute(engine, OPEN_AGAIN)
        await attempt(engine)
    assert found == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]


async def test_wait_does_not_grow_while_one_waits(engine: AsyncEngine) -> None:
    for _ in range(10):
        await execute(engine, OPEN_AGAIN)
        await attempt(engine)
    assert [await wait(engine) for _ in range(5)] == [32] * 5
    assert await value(engine, "SELECT max(failures) FROM throttle") == 10


async def test_who_is_blocked_at_one_address_comes_in_from_another(engine: AsyncEngine) -> None:
    for _ in range(6):
        await wait(engine)
    assert await wait(engine) > 0
    assert await wait(engine, address=THERE) == 0
    assert await wait(engine, "bob") == 0


async def test_address_that_tries_many_names_waits_after_thirty(engine: AsyncEngine) -> None:
    assert [await wait(engine, f"name {n}") for n in range(30)] == [0] * 30
    assert await wait(engine, "another") == 1
    assert await wait(engine, "another", THERE) == 0


async def test_name_that_is_tried_from_everywhere_waits_a_minute_at_most(
    engine: AsyncEngine,
) -> None:
    places = [f"198.51.100.{n}" for n in range(50)]
    assert [await wait(engine, "ann", place) for place in places] == [0] * 50
    assert await wait(engine, "ANN ", THERE) == 1
    for n in range(20):
        await execute(engine, OPEN_AGAIN)
        await attempt(engine, "ann", f"203.0.113.{n}")
    assert await wait(engine, "ann", THERE) == 60


async def signs_in(engine: AsyncEngine, name: str = "ann", address: str = HERE) -> None:
    async with engine.begin() as connection:
        await throttle.clear(connection, await throttle.count(connection, name, address))


async def test_nobody_is_kept_out_by_others_where_they_have_signed_in(engine: AsyncEngine) -> None:
    await signs_in(engine)
    await signs_in(engine, "bob", THERE)
    for n in range(60):
        await execute(engine, OPEN_AGAIN)
        await attempt(engine, "ann", f"203.0.113.{n}")
    assert await wait(engine, "ann", THERE) == 60
    assert await wait(engine, " Ann") == 0
    assert [await wait(engine) for _ in range(5)] == [0, 0, 0, 0, 1]  # as of everybody
    await execute(engine, "DELETE FROM throttle WHERE failures < 60")
    await execute(engine, "UPDATE home SET seen_at = now() - interval '30 days'")
    assert await wait(engine) == 60


async def test_attempt_that_nobody_looked_at_is_forgotten(engine: AsyncEngine) -> None:
    for _ in range(4):
        await attempt(engine)
    for _ in range(10):
        last = await attempt(engine)
        async with engine.begin() as connection:
            await throttle.take_back(connection, last)
    assert await value(engine, "SELECT array_agg(DISTINCT failures) FROM throttle") == [4]
    assert await wait(engine) == 0


@pytest.mark.parametrize("name", ["\u212anut", "KNUT", " knut ", "Knut"])
async def test_spellings_that_open_one_account_are_counted_as_one(
    engine: AsyncEngine, name: str
) -> None:
    assert await value(engine, f"SELECT lower('{name.strip()}')") == "knut"
    first, again = await attempt(engine, "knut"), await attempt(engine, name)
    assert (first.name, first.both) == (again.name, again.both)


@pytest.mark.parametrize("name", ["adm\u0130n", "\u1e9e", "\u00df", "\ufb01", "\u03a3\u03c2"])
async def test_names_are_counted_as_one_just_where_the_database_finds_one(
    engine: AsyncEngine, name: str
) -> None:
    for other in (name.lower(), name.casefold(), "admin", "ss"):
        first, again = await attempt(engine, name), await attempt(engine, other)
        is_one = await value(engine, f"SELECT lower('{name}') = lower('{other}')")
        assert (first.name == again.name) is is_one
        await execute(engine, "DELETE FROM throttle")


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
async def test_name_that_nobody_can_have_is_counted_too(engine: AsyncEngine, name: str) -> None:
    assert [await wait(engine, name) for _ in range(6)] == [0] * 5 + [1]


async def test_log_warns_once_when_attempts_are_first_slowed_and_names_nobody(
    engine: AsyncEngine,
) -> None:
    with capture_logs() as logs:
        for _ in range(4):
            await attempt(engine)
        assert logs == []
        for _ in range(5):
            await wait(engine)
            await execute(engine, OPEN_AGAIN)
            await attempt(engine)
    assert logs == [{"event": "sign_ins_slowed", "by": "both", "log_level": "warning"}]


async def test_many_attempts_at_once_do_not_all_get_through(engine: AsyncEngine) -> None:
    found = await asyncio.gather(*(wait(engine) for _ in range(40)))
    # on a slow machine the first waits are over before the last attempt
    assert 5 <= found.count(0) < 20
    assert await value(engine, "SELECT max(failures) FROM throttle") == found.count(0)


async def test_right_password_clears_the_name_and_takes_back_its_own_count_of_the_address(
    engine: AsyncEngine,
) -> None:
    for n in range(20):
        await attempt(engine, f"name {n}")
    for _ in range(4):
        await attempt(engine)
    last = await attempt(engine)
    async with engine.begin() as connection:
        await throttle.clear(connection, last)
    kept = "SELECT failures FROM throttle WHERE digest = '\\x{}'"
    assert await value(engine, kept.format(last.address.digest.hex())) == 24
    gone = "SELECT count(*) FROM throttle WHERE digest IN ('\\x{}', '\\x{}')"
    asked = gone.format(last.name.digest.hex(), last.both.digest.hex())
    assert await value(engine, asked) == 0
    assert [await wait(engine) for _ in range(5)] == [0] * 5


async def test_many_who_sign_in_from_one_address_do_not_block_it(engine: AsyncEngine) -> None:
    for n in range(40):
        done = await attempt(engine, f"name {n}")
        async with engine.begin() as connection:
            await throttle.clear(connection, done)
    assert await wait(engine) == 0


async def test_right_password_of_ones_own_does_not_open_the_way_to_guess_others(
    engine: AsyncEngine,
) -> None:
    for n in range(29):
        await attempt(engine, f"name {n}")
    async with engine.begin() as connection:
        own = await throttle.count(connection, "own", HERE)
    await execute(engine, "UPDATE throttle SET blocked_until = now() + interval '9 minutes'")
    async with engine.begin() as connection:
        await throttle.clear(connection, own)
    assert await wait(engine, "another") > 500


@pytest.mark.parametrize("address", [None, "", "unix"])
async def test_address_that_is_none_is_counted_too(
    engine: AsyncEngine, address: str | None
) -> None:
    async with engine.begin() as connection:
        await throttle.count(connection, "ann", address)
    assert await value(engine, "SELECT count(*) FROM throttle") == 3


async def test_ipv6_addresses_of_one_network_count_as_one(engine: AsyncEngine) -> None:
    for n in range(5):
        await attempt(engine, "ann", f"2001:db8::{n:x}")
    assert await wait(engine, "ann", "2001:db8::ffff:1") == 1
    assert await wait(engine, "ann", "2001:db8:0:1::1") == 0


async def test_nothing_that_was_typed_is_kept(engine: AsyncEngine) -> None:
    await attempt(engine, "my password by mistake")
    rows = "SELECT string_agg(throttle::text || encode(digest, 'escape'), ' ') FROM throttle"
    kept = await value(engine, rows)
    assert "mistake" not in kept
    assert HERE not in kept


ACCOUNT = "INSERT INTO account (name, role, password) VALUES ('ann', 'viewer', 'x')"
SESSION = """
    INSERT INTO session (digest, account_id, created_at, seen_at)
    SELECT '{}', id, now() - interval '{}', now() - interval '{}' FROM account"""
SIGN_IN = "INSERT INTO sign_in VALUES ('{0}', '', '', '', now() - interval '{0}')"
HOME = "INSERT INTO home VALUES ('{0}', now() - interval '{0}')"
FAILURE = "INSERT INTO throttle VALUES ('{0}', 1, now(), now() - interval '{0}')"
KEPT = "SELECT string_agg(encode(digest, 'escape'), ',') FROM {}"


async def test_what_has_had_its_day_is_cleared_and_nothing_else(engine: AsyncEngine) -> None:
    await execute(
        engine,
        ACCOUNT,
        SESSION.format("open", "11 hours 59 minutes", "1 hour 59 minutes"),
        SESSION.format("idle", "3 hours", "2 hours 1 minute"),
        SESSION.format("old", "12 hours 1 minute", "1 minute"),
        *(SIGN_IN.format(age) for age in ("9 minutes", "11 minutes")),
        *(HOME.format(age) for age in ("29 days", "31 days")),
        *(FAILURE.format(age) for age in ("23 hours", "25 hours")),
    )
    async with engine.begin() as connection:
        await clearing.clear(connection, 1)
    assert await value(engine, "SELECT count(*) FROM session") == 2
    async with engine.begin() as connection:
        await clearing.clear(connection, 10)
    left = {"session": "open", "sign_in": "9 minutes", "throttle": "23 hours", "home": "29 days"}
    for table, kept in left.items():
        assert await value(engine, KEPT.format(table)) == kept


async def test_wait_is_never_told_shorter_than_it_is(engine: AsyncEngine) -> None:
    for _ in range(9):
        await execute(engine, OPEN_AGAIN)
        await attempt(engine)
    told = timedelta(seconds=await wait(engine))
    left = await value(engine, "SELECT max(blocked_until) - clock_timestamp() FROM throttle")
    assert told >= left


async def test_clearing_is_done_again_and_again(engine: AsyncEngine) -> None:
    await execute(engine, FAILURE.format("25 hours"))
    (job,) = [job for job in jobs(engine, Settings(), None) if job.name == "clear"]
    await job.run()
    assert await value(engine, "SELECT count(*) FROM throttle") == 0
