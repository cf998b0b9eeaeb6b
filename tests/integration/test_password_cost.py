"""Password hashing at its real cost; tests in other files use the lowest cost."""

import math
import subprocess
import sys
import time

import pytest
from argon2 import PasswordHasher
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import value
from tests.integration.test_users import PASSWORD, create_user, sign_in

from mailer.access import credentials, service

STORED_HASH = "SELECT password_hash FROM app_user"


async def test_a_password_is_stored_as_a_salted_argon2id_hash() -> None:
    first_hash = await credentials.hash_password(PASSWORD)
    second_hash = await credentials.hash_password(PASSWORD)
    assert first_hash.startswith("$argon2id$v=19$m=65536,t=3,p=4$")  # m: memory in KiB
    assert first_hash != second_hash  # each has its own salt

    assert await credentials.verify_password(first_hash, PASSWORD)
    assert not await credentials.verify_password(first_hash, PASSWORD + "!")


async def test_an_unknown_user_and_a_too_long_password_never_match() -> None:
    stored_hash = await credentials.hash_password(PASSWORD)
    assert not await credentials.verify_password(None, PASSWORD)
    assert not await credentials.verify_password(stored_hash, "x" * 1_025)


async def test_an_unknown_name_takes_as_long_as_a_wrong_password(engine: AsyncEngine) -> None:
    await create_user(engine, "Ann")

    async def processor_time(name: str) -> float:
        """Return the seconds of processor time that a failed sign-in takes, at best of three."""
        fastest = math.inf
        for _ in range(3):
            before = time.process_time()  # independent of other load of the machine
            with pytest.raises(service.NotSignedInError):
                await sign_in(engine, name, "wrong")
            fastest = min(fastest, time.process_time() - before)
        return fastest

    of_unknown_name = await processor_time("Bob")
    of_wrong_password = await processor_time("Ann")
    # hashing takes nearly all the time, so without it the ratio would be far below 0.4
    assert 0.4 < of_unknown_name / of_wrong_password < 2.5


def test_the_hash_for_unknown_names_needs_no_hashing() -> None:
    """Otherwise the first sign-in with an unknown name in a process would take twice as long.

    The hash is cached, so a new process is needed, in which hashing raises an exception.
    """
    program = (
        "import asyncio, argon2\n"
        "from mailer.access import credentials\n"
        "argon2.PasswordHasher.hash = None\n"
        "assert not asyncio.run(credentials.verify_password(None, 'wrong'))\n"
        "assert not credentials.needs_rehash(credentials._dummy_hash())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603  # the program above


async def test_a_password_is_rehashed_when_the_parameters_changed(engine: AsyncEngine) -> None:
    await create_user(engine)
    weak_hash = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    update = text("UPDATE app_user SET password_hash = :weak_hash")
    async with engine.begin() as connection:
        await connection.execute(update, {"weak_hash": weak_hash})

    await sign_in(engine)
    strong_hash = await value(engine, STORED_HASH)
    assert "m=65536" in strong_hash  # the memory of the usual parameters, in KiB

    await sign_in(engine)
    assert await value(engine, STORED_HASH) == strong_hash
