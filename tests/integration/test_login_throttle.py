"""Throttling of sign-ins: after too many failures, attempts must wait, and the waits double.

Failures are counted by name, by network, and by both together.
"""

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
from mailer.gateway.channel import NO_CHANNELS
from mailer.settings import Settings

HERE, THERE = "192.0.2.1", "192.0.2.2"
"""Two addresses in different networks."""
END_WAITS = "UPDATE login_throttle SET blocked_until = clock_timestamp()"
FAILURES = "SELECT failures FROM login_throttle WHERE digest = '\\x{}'"
MAX_FAILURES = "SELECT max(failures) FROM login_throttle"


async def count_attempt(
    engine: AsyncEngine, name: str = "ann", address: str = HERE
) -> LoginAttempt:
    """Count a failed attempt, which must be allowed."""
    async with engine.begin() as connection:
        return await login_throttle.count_attempt(connection, name, address)


async def seconds_to_wait(engine: AsyncEngine, name: str = "ann", address: str = HERE) -> int:
    """Count a failed attempt and return 0; if it is not allowed, return the seconds to wait."""
    try:
        await count_attempt(engine, name, address)
    except ThrottledError as error:
        return error.seconds
    return 0


async def waits_of(engine: AsyncEngine, attempts: int) -> list[int]:
    """Return the seconds that each of several attempts in a row has to wait."""
    return [await seconds_to_wait(engine) for _ in range(attempts)]


async def count_attempt_after_wait(
    engine: AsyncEngine, name: str = "ann", address: str = HERE
) -> None:
    """Count a failed attempt as if every wait before it had passed."""
    await execute(engine, END_WAITS)
    await count_attempt(engine, name, address)


async def enter_right_password(engine: AsyncEngine, attempt: LoginAttempt) -> None:
    """Do what happens after an attempt whose password turns out to be right."""
    async with engine.begin() as connection:
        await login_throttle.forget_attempts(connection, attempt)


async def sign_in(engine: AsyncEngine, name: str = "ann", address: str = HERE) -> None:
    """Attempt to sign in with the right password."""
    await enter_right_password(engine, await count_attempt(engine, name, address))


async def test_after_five_failures_waits_double_up_to_fifteen_minutes(
    engine: AsyncEngine,
) -> None:
    assert await waits_of(engine, attempts=5) == [0] * 5
    waits = []
    for _ in range(13):
        waits.append(await seconds_to_wait(engine))
        await count_attempt_after_wait(engine)
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]


async def test_attempts_while_waiting_do_not_extend_the_wait(engine: AsyncEngine) -> None:
    for _ in range(10):
        await count_attempt_after_wait(engine)
    assert await waits_of(engine, attempts=5) == [32] * 5  # 2 ** (10 - 5)
    assert await value(engine, MAX_FAILURES) == 10


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
    waits = [await seconds_to_wait(engine, "ann", address) for address in addresses]
    assert waits == [0] * 50
    assert await seconds_to_wait(engine, "ANN ", THERE) == 1  # another spelling of the same name
    for n in range(20):
        await count_attempt_after_wait(engine, "ann", f"203.0.113.{n}")
    assert await seconds_to_wait(engine, "ann", THERE) == 60


async def test_attempts_from_elsewhere_do_not_block_a_network_where_the_user_signed_in(
    engine: AsyncEngine,
) -> None:
    await sign_in(engine, "ann", HERE)
    await sign_in(engine, "bob", THERE)
    for n in range(60):
        await count_attempt_after_wait(engine, "ann", f"203.0.113.{n}")

    assert await seconds_to_wait(engine, "ann", THERE) == 60  # only bob has signed in there
    assert await seconds_to_wait(engine, " Ann", HERE) == 0
    # in this network, ann's usual limit for one address still applies
    assert await waits_of(engine, attempts=5) == [0, 0, 0, 0, 1]

    keep_only_the_counter_of_the_name = "DELETE FROM login_throttle WHERE failures < 60"
    await execute(engine, keep_only_the_counter_of_the_name)
    await execute(engine, "UPDATE known_network SET seen_at = now() - interval '30 days'")
    assert await seconds_to_wait(engine, "ann", HERE) == 60  # the network is no longer known


async def test_an_attempt_that_was_not_checked_is_not_counted(engine: AsyncEngine) -> None:
    for _ in range(4):
        await count_attempt(engine)
    for _ in range(10):
        unchecked = await count_attempt(engine)
        async with engine.begin() as connection:
            await login_throttle.uncount_attempt(connection, unchecked)
    assert await value(engine, "SELECT array_agg(DISTINCT failures) FROM login_throttle") == [4]
    assert await seconds_to_wait(engine) == 0


KELVIN_SIGN = "\u212a"
"""Its lower case is the letter k."""


@pytest.mark.parametrize("name", [f"{KELVIN_SIGN}nut", "KNUT", " knut ", "Knut"])
async def test_spellings_of_the_same_user_name_are_counted_together(
    engine: AsyncEngine, name: str
) -> None:
    assert await value(engine, f"SELECT lower('{name.strip()}')") == "knut"
    first, second = await count_attempt(engine, "knut"), await count_attempt(engine, name)
    assert (first.name, first.name_and_address) == (second.name, second.name_and_address)


@pytest.mark.parametrize("name", ["adm\u0130n", "\u1e9e", "\u00df", "\ufb01", "\u03a3\u03c2"])
async def test_names_are_counted_together_exactly_if_the_database_finds_them_equal(
    engine: AsyncEngine, name: str
) -> None:
    for other in (name.lower(), name.casefold(), "admin", "ss"):
        attempt_of_name = await count_attempt(engine, name)
        attempt_of_other = await count_attempt(engine, other)
        is_equal = await value(engine, f"SELECT lower('{name}') = lower('{other}')")
        assert (attempt_of_name.name == attempt_of_other.name) is is_equal
        await execute(engine, "DELETE FROM login_throttle")


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])  # the database can store neither
async def test_attempts_with_an_impossible_name_are_counted(engine: AsyncEngine, name: str) -> None:
    assert [await seconds_to_wait(engine, name) for _ in range(6)] == [0] * 5 + [1]


async def test_the_first_throttling_is_logged_once_without_a_name(
    engine: AsyncEngine,
) -> None:
    with capture_logs() as logs:
        for _ in range(4):
            await count_attempt(engine)
        assert logs == []
        for _ in range(5):
            await seconds_to_wait(engine)
            await count_attempt_after_wait(engine)
    assert logs == [{"event": "login_throttled", "by": "both", "log_level": "warning"}]


async def test_concurrent_attempts_are_not_all_allowed(engine: AsyncEngine) -> None:
    waits = await asyncio.gather(*(seconds_to_wait(engine) for _ in range(40)))
    allowed = waits.count(0)
    # five are allowed at once; some more if waits of a few seconds end before the last attempt
    assert 5 <= allowed < 20
    assert await value(engine, MAX_FAILURES) == allowed


async def test_the_right_password_resets_the_name_and_uncounts_its_attempts_for_the_address(
    engine: AsyncEngine,
) -> None:
    for n in range(20):
        await count_attempt(engine, f"name {n}")
    for _ in range(4):
        await count_attempt(engine, "ann")
    successful = await count_attempt(engine, "ann")
    await enter_right_password(engine, successful)

    failures_of_address = await value(engine, FAILURES.format(successful.address.digest.hex()))
    assert failures_of_address == 20 + 4
    for counter in (successful.name, successful.name_and_address):
        count_rows = f"SELECT count(*) FROM ({FAILURES.format(counter.digest.hex())}) AS rows"  # noqa: S608  # a digest
        assert await value(engine, count_rows) == 0
    assert await waits_of(engine, attempts=5) == [0] * 5


async def test_many_successful_sign_ins_do_not_block_an_address(engine: AsyncEngine) -> None:
    for n in range(40):
        await sign_in(engine, f"name {n}")
    assert await seconds_to_wait(engine) == 0


async def test_a_successful_sign_in_does_not_reset_failures_with_other_names(
    engine: AsyncEngine,
) -> None:
    for n in range(29):
        await count_attempt(engine, f"name {n}")
    own = await count_attempt(engine, "own")
    # as if other failures meanwhile had set a longer wait
    await execute(engine, "UPDATE login_throttle SET blocked_until = now() + interval '9 minutes'")
    await enter_right_password(engine, own)
    assert await seconds_to_wait(engine, "another") > 500


@pytest.mark.parametrize("address", [None, "", "unix"])
async def test_attempts_without_an_address_are_counted(
    engine: AsyncEngine, address: str | None
) -> None:
    async with engine.begin() as connection:
        await login_throttle.count_attempt(connection, "ann", address)
    assert await value(engine, "SELECT count(*) FROM login_throttle") == 3  # all three counters


async def test_ipv6_addresses_of_one_network_are_counted_together(engine: AsyncEngine) -> None:
    for n in range(5):
        await count_attempt(engine, "ann", f"2001:db8::{n:x}")
    in_the_same_network, in_another_network = "2001:db8::ffff:1", "2001:db8:0:1::1"
    assert await seconds_to_wait(engine, "ann", in_the_same_network) == 1
    assert await seconds_to_wait(engine, "ann", in_another_network) == 0


async def test_neither_names_nor_addresses_are_stored_in_clear(engine: AsyncEngine) -> None:
    await count_attempt(engine, "my password by mistake", HERE)
    whole_table = """
        SELECT string_agg(login_throttle::text || encode(digest, 'escape'), ' ')
        FROM login_throttle"""
    stored = await value(engine, whole_table)
    assert "mistake" not in stored
    assert HERE not in stored


INSERT_USER = "INSERT INTO app_user (name, role, password_hash) VALUES ('ann', 'viewer', 'x')"
INSERT_SESSION = """
    INSERT INTO session (digest, user_id, created_at, seen_at)
    SELECT '{}', id, now() - interval '{}', now() - interval '{}' FROM app_user"""
INSERT_SIGN_IN = "INSERT INTO oidc_sign_in VALUES ('{0}', '', '', '', now() - interval '{0}')"
INSERT_KNOWN_NETWORK = "INSERT INTO known_network VALUES ('{0}', now() - interval '{0}')"
INSERT_FAILURE = "INSERT INTO login_throttle VALUES ('{0}', 1, now(), now() - interval '{0}')"
REMAINING_KEYS = "SELECT string_agg(encode(digest, 'escape'), ',') FROM {}"


async def test_exactly_expired_rows_are_deleted(engine: AsyncEngine) -> None:
    """The key of each row says its age, or for sessions whether and why it has expired."""
    await execute(
        engine,
        INSERT_USER,
        INSERT_SESSION.format("open", "11 hours 59 minutes", "1 hour 59 minutes"),
        INSERT_SESSION.format("idle", "3 hours", "2 hours 1 minute"),
        INSERT_SESSION.format("old", "12 hours 1 minute", "1 minute"),
        *(INSERT_SIGN_IN.format(age) for age in ("9 minutes", "11 minutes")),
        *(INSERT_KNOWN_NETWORK.format(age) for age in ("29 days", "31 days")),
        *(INSERT_FAILURE.format(age) for age in ("23 hours", "25 hours")),
    )
    async with engine.begin() as connection:
        await expiry.delete_expired(connection, limit=1)
    assert await value(engine, "SELECT count(*) FROM session") == 2
    async with engine.begin() as connection:
        await expiry.delete_expired(connection, limit=10)
    remaining = {
        "session": "open",
        "oidc_sign_in": "9 minutes",
        "login_throttle": "23 hours",
        "known_network": "29 days",
    }
    for table, digest in remaining.items():
        assert await value(engine, REMAINING_KEYS.format(table)) == digest


async def test_the_reported_wait_is_never_too_short(engine: AsyncEngine) -> None:
    for _ in range(9):
        await count_attempt_after_wait(engine)
    reported = timedelta(seconds=await seconds_to_wait(engine))
    actual = await value(
        engine, "SELECT max(blocked_until) - clock_timestamp() FROM login_throttle"
    )
    assert reported >= actual


async def test_the_periodic_job_deletes_expired_rows(engine: AsyncEngine) -> None:
    await execute(engine, INSERT_FAILURE.format("25 hours"))
    all_jobs = jobs(engine, NO_CHANNELS, JobLimits.of(Settings()), None)
    [delete_expired] = [job for job in all_jobs if job.name == "delete_expired"]
    await delete_expired.run()
    assert await value(engine, "SELECT count(*) FROM login_throttle") == 0
