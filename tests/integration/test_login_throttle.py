"""Throttling of sign-ins by name, by address and by both: waiting times double."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.factories import execute, value

from mailer.access import login_throttle
from mailer.access.login_throttle import LoginAttempt, ThrottledError
from mailer.dispatch import expiry
from mailer.dispatch.schedule import JobLimits, jobs
from mailer.settings import Settings

HERE, THERE = "192.0.2.1", "192.0.2.2"
END_WAIT = "UPDATE login_throttle SET blocked_until = clock_timestamp()"


async def attempt(engine: AsyncEngine, name: str = "ann", address: str = HERE) -> LoginAttempt:
    async with engine.begin() as connection:
        return await login_throttle.count_attempt(connection, name, address)


async def seconds_to_wait(engine: AsyncEngine, name: str = "ann", address: str = HERE) -> int:
    """Return the seconds to wait; an attempt that is allowed counts."""
    try:
        await attempt(engine, name, address)
    except ThrottledError as error:
        return error.seconds
    return 0


async def test_after_five_failures_waits_double_up_to_fifteen_minutes(
    engine: AsyncEngine,
) -> None:
    assert [await seconds_to_wait(engine) for _ in range(5)] == [0] * 5
    waits = []
    for _ in range(13):
        waits.append(await seconds_to_wait(engine))
        await execute(engine, END_WAIT)
        await attempt(engine)
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]


async def test_attempts_while_waiting_do_not_extend_the_wait(engine: AsyncEngine) -> None:
    for _ in range(10):
        await execute(engine, END_WAIT)
        await attempt(engine)
    assert [await seconds_to_wait(engine) for _ in range(5)] == [32] * 5
    assert await value(engine, "SELECT max(failures) FROM login_throttle") == 10


async def test_a_name_blocked_at_one_address_is_allowed_at_another(engine: AsyncEngine) -> None:
    for _ in range(6):
        await seconds_to_wait(engine)
    assert await seconds_to_wait(engine) > 0
    assert await seconds_to_wait(engine, address=THERE) == 0
    assert await seconds_to_wait(engine, "bob") == 0


async def test_an_address_that_tries_many_names_waits_after_thirty_attempts(
    engine: AsyncEngine,
) -> None:
    assert [await seconds_to_wait(engine, f"name {n}") for n in range(30)] == [0] * 30
    assert await seconds_to_wait(engine, "another") == 1
    assert await seconds_to_wait(engine, "another", THERE) == 0


async def test_a_name_tried_from_many_addresses_waits_at_most_a_minute(
    engine: AsyncEngine,
) -> None:
    addresses = [f"198.51.100.{n}" for n in range(50)]
    assert [await seconds_to_wait(engine, "ann", tried_address) for tried_address in addresses] == [
        0
    ] * 50
    assert await seconds_to_wait(engine, "ANN ", THERE) == 1
    for n in range(20):
        await execute(engine, END_WAIT)
        await attempt(engine, "ann", f"203.0.113.{n}")
    assert await seconds_to_wait(engine, "ann", THERE) == 60


async def sign_in(engine: AsyncEngine, name: str = "ann", address: str = HERE) -> None:
    async with engine.begin() as connection:
        await login_throttle.forget_attempts(
            connection, await login_throttle.count_attempt(connection, name, address)
        )


async def test_attempts_from_elsewhere_do_not_block_a_network_where_the_user_signed_in(
    engine: AsyncEngine,
) -> None:
    await sign_in(engine)
    await sign_in(engine, "bob", THERE)
    for n in range(60):
        await execute(engine, END_WAIT)
        await attempt(engine, "ann", f"203.0.113.{n}")
    assert await seconds_to_wait(engine, "ann", THERE) == 60
    assert await seconds_to_wait(engine, " Ann") == 0
    assert [await seconds_to_wait(engine) for _ in range(5)] == [0, 0, 0, 0, 1]  # the usual limit
    await execute(engine, "DELETE FROM login_throttle WHERE failures < 60")
    await execute(engine, "UPDATE known_network SET seen_at = now() - interval '30 days'")
    assert await seconds_to_wait(engine) == 60


async def test_an_attempt_that_was_not_checked_is_not_counted(engine: AsyncEngine) -> None:
    for _ in range(4):
        await attempt(engine)
    for _ in range(10):
        last = await attempt(engine)
        async with engine.begin() as connection:
            await login_throttle.uncount_attempt(connection, last)
    assert await value(engine, "SELECT array_agg(DISTINCT failures) FROM login_throttle") == [4]
    assert await seconds_to_wait(engine) == 0


@pytest.mark.parametrize("name", ["\u212anut", "KNUT", " knut ", "Knut"])
async def test_spellings_of_the_same_user_name_are_counted_together(
    engine: AsyncEngine, name: str
) -> None:
    assert await value(engine, f"SELECT lower('{name.strip()}')") == "knut"
    first, second = await attempt(engine, "knut"), await attempt(engine, name)
    assert (first.name, first.name_and_address) == (second.name, second.name_and_address)


@pytest.mark.parametrize("name", ["adm\u0130n", "\u1e9e", "\u00df", "\ufb01", "\u03a3\u03c2"])
async def test_names_are_counted_together_exactly_if_the_database_finds_them_equal(
    engine: AsyncEngine, name: str
) -> None:
    for other in (name.lower(), name.casefold(), "admin", "ss"):
        attempt_of_name, attempt_of_other = (
            await attempt(engine, name),
            await attempt(engine, other),
        )
        is_equal = await value(engine, f"SELECT lower('{name}') = lower('{other}')")
        assert (attempt_of_name.name == attempt_of_other.name) is is_equal
        await execute(engine, "DELETE FROM login_throttle")


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
async def test_attempts_with_an_impossible_name_are_counted(engine: AsyncEngine, name: str) -> None:
    assert [await seconds_to_wait(engine, name) for _ in range(6)] == [0] * 5 + [1]


async def test_the_first_throttling_is_logged_once_without_a_name(
    engine: AsyncEngine,
) -> None:
    with capture_logs() as logs:
        for _ in range(4):
            await attempt(engine)
        assert logs == []
        for _ in range(5):
            await seconds_to_wait(engine)
            await execute(engine, END_WAIT)
            await attempt(engine)
    assert logs == [{"event": "login_throttled", "by": "both", "log_level": "warning"}]


async def test_concurrent_attempts_are_not_all_allowed(engine: AsyncEngine) -> None:
    waits = await asyncio.gather(*(seconds_to_wait(engine) for _ in range(40)))
    # on a slow machine the first waits end before the last attempt
    assert 5 <= waits.count(0) < 20
    assert await value(engine, "SELECT max(failures) FROM login_throttle") == waits.count(0)


async def test_the_right_password_resets_the_name_and_uncounts_its_attempts_for_the_address(
    engine: AsyncEngine,
) -> None:
    for n in range(20):
        await attempt(engine, f"name {n}")
    for _ in range(4):
        await attempt(engine)
    last = await attempt(engine)
    async with engine.begin() as connection:
        await login_throttle.forget_attempts(connection, last)
    failures_query = "SELECT failures FROM login_throttle WHERE digest = '\\x{}'"
    assert await value(engine, failures_query.format(last.address.digest.hex())) == 24
    count_query = "SELECT count(*) FROM login_throttle WHERE digest IN ('\\x{}', '\\x{}')"
    query = count_query.format(last.name.digest.hex(), last.name_and_address.digest.hex())
    assert await value(engine, query) == 0
    assert [await seconds_to_wait(engine) for _ in range(5)] == [0] * 5


async def test_many_successful_sign_ins_do_not_block_an_address(engine: AsyncEngine) -> None:
    for n in range(40):
        counted = await attempt(engine, f"name {n}")
        async with engine.begin() as connection:
            await login_throttle.forget_attempts(connection, counted)
    assert await seconds_to_wait(engine) == 0


async def test_a_successful_sign_in_does_not_reset_failures_with_other_names(
    engine: AsyncEngine,
) -> None:
    for n in range(29):
        await attempt(engine, f"name {n}")
    async with engine.begin() as connection:
        own = await login_throttle.count_attempt(connection, "own", HERE)
    await execute(engine, "UPDATE login_throttle SET blocked_until = now() + interval '9 minutes'")
    async with engine.begin() as connection:
        await login_throttle.forget_attempts(connection, own)
    assert await seconds_to_wait(engine, "another") > 500


@pytest.mark.parametrize("address", [None, "", "unix"])
async def test_attempts_without_an_address_are_counted(
    engine: AsyncEngine, address: str | None
) -> None:
    async with engine.begin() as connection:
        await login_throttle.count_attempt(connection, "ann", address)
    assert await value(engine, "SELECT count(*) FROM login_throttle") == 3


async def test_ipv6_addresses_of_one_network_are_counted_together(engine: AsyncEngine) -> None:
    for n in range(5):
        await attempt(engine, "ann", f"2001:db8::{n:x}")
    assert await seconds_to_wait(engine, "ann", "2001:db8::ffff:1") == 1
    assert await seconds_to_wait(engine, "ann", "2001:db8:0:1::1") == 0


async def test_neither_names_nor_addresses_are_stored_in_clear(engine: AsyncEngine) -> None:
    await attempt(engine, "my password by mistake")
    rows = """
        SELECT string_agg(login_throttle::text || encode(digest, 'escape'), ' ')
        FROM login_throttle"""
    stored = await value(engine, rows)
    assert "mistake" not in stored
    assert HERE not in stored


INSERT_USER = "INSERT INTO app_user (name, role, password_hash) VALUES ('ann', 'viewer', 'x')"
SESSION = """
    INSERT INTO session (digest, user_id, created_at, seen_at)
    SELECT '{}', id, now() - interval '{}', now() - interval '{}' FROM app_user"""
SIGN_IN = "INSERT INTO oidc_sign_in VALUES ('{0}', '', '', '', now() - interval '{0}')"
KNOWN_NETWORK = "INSERT INTO known_network VALUES ('{0}', now() - interval '{0}')"
FAILURE = "INSERT INTO login_throttle VALUES ('{0}', 1, now(), now() - interval '{0}')"
REMAINING = "SELECT string_agg(encode(digest, 'escape'), ',') FROM {}"


async def test_exactly_expired_rows_are_deleted(engine: AsyncEngine) -> None:
    await execute(
        engine,
        INSERT_USER,
        SESSION.format("open", "11 hours 59 minutes", "1 hour 59 minutes"),
        SESSION.format("idle", "3 hours", "2 hours 1 minute"),
        SESSION.format("old", "12 hours 1 minute", "1 minute"),
        *(SIGN_IN.format(age) for age in ("9 minutes", "11 minutes")),
        *(KNOWN_NETWORK.format(age) for age in ("29 days", "31 days")),
        *(FAILURE.format(age) for age in ("23 hours", "25 hours")),
    )
    async with engine.begin() as connection:
        await expiry.delete_expired(connection, 1)
    assert await value(engine, "SELECT count(*) FROM session") == 2
    async with engine.begin() as connection:
        await expiry.delete_expired(connection, 10)
    remaining = {
        "session": "open",
        "oidc_sign_in": "9 minutes",
        "login_throttle": "23 hours",
        "known_network": "29 days",
    }
    for table, digest in remaining.items():
        assert await value(engine, REMAINING.format(table)) == digest


async def test_the_reported_wait_is_never_too_short(engine: AsyncEngine) -> None:
    for _ in range(9):
        await execute(engine, END_WAIT)
        await attempt(engine)
    reported = timedelta(seconds=await seconds_to_wait(engine))
    actual = await value(
        engine, "SELECT max(blocked_until) - clock_timestamp() FROM login_throttle"
    )
    assert reported >= actual


async def test_the_periodic_job_deletes_expired_rows(engine: AsyncEngine) -> None:
    await execute(engine, FAILURE.format("25 hours"))
    (job,) = [
        job for job in jobs(engine, JobLimits.of(Settings()), None) if job.name == "delete_expired"
    ]
    await job.run()
    assert await value(engine, "SELECT count(*) FROM login_throttle") == 0
