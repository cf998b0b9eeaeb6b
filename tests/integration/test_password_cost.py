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


async def test_a_password_is_stored_as_a_salted_argon2id_hash() -> None:
    first, second = (
        await credentials.hash_password(PASSWORD),
        await credentials.hash_password(PASSWORD),
    )
    assert first.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert first != second
    assert await credentials.verify_password(first, PASSWORD)
    assert not await credentials.verify_password(first, PASSWORD + "!")
    assert not await credentials.verify_password(None, "nobody's")
    assert not await credentials.verify_password(first, "x" * 1_025)


async def test_an_unknown_name_takes_as_long_as_a_wrong_password(engine: AsyncEngine) -> None:
    await create_user(engine)

    async def seconds(name: str) -> float:
        fastest = math.inf
        for _ in range(3):
            began = time.process_time()  # independent of other load
            with pytest.raises(service.NotSignedInError):
                await sign_in(engine, name, "wrong")
            fastest = min(fastest, time.process_time() - began)
        return fastest

    assert 0.4 < await seconds("Bob") / await seconds("Ann") < 2.5


def test_the_hash_for_unknown_names_needs_no_hashing() -> None:
    """Otherwise the first sign-in with an unknown name took twice as long. Needs a new process."""
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
    weak = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE app_user SET password_hash = :weak"), {"weak": weak})
    await sign_in(engine)
    stored = await value(engine, "SELECT password_hash FROM app_user")
    assert "m=65536" in stored
    await sign_in(engine)
    assert await value(engine, "SELECT password_hash FROM app_user") == stored
