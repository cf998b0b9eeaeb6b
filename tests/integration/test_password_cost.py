"""What a password costs: in every other file they are hashed at the least cost there is."""

import math
import subprocess
import sys
import time

import pytest
from argon2 import PasswordHasher
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.integration.test_accounts import PASSWORD, add, enter
from tests.sample import value

from mailer.access import passwords, service


async def test_what_is_kept_of_a_password_is_an_argon2id_hash_that_differs_each_time() -> None:
    first, second = await passwords.hashed(PASSWORD), await passwords.hashed(PASSWORD)
    assert first.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert first != second
    assert await passwords.matches(first, PASSWORD)
    assert not await passwords.matches(first, PASSWORD + "!")
    assert not await passwords.matches(None, "nobody's")
    assert not await passwords.matches(first, "x" * 1_025)


async def test_unknown_name_costs_the_time_of_a_wrong_password(engine: AsyncEngine) -> None:
    await add(engine)

    async def seconds(name: str) -> float:
        fastest = math.inf
        for _ in range(3):
            began = time.process_time()  # whatever else the machine does
            with pytest.raises(service.NotSignedInError):
                await enter(engine, name, "wrong")
            fastest = min(fastest, time.process_time() - began)
        return fastest

    assert 0.4 < await seconds("Bob") / await seconds("Ann") < 2.5


def test_what_nobodys_password_is_compared_with_is_not_made_first() -> None:
    """In a process of its own: the first that nobody has would take twice as long."""
    program = (
        "import asyncio, argon2\n"
        "from mailer.access import passwords\n"
        "argon2.PasswordHasher.hash = None\n"
        "assert not asyncio.run(passwords.matches(None, 'wrong'))\n"
        "assert not passwords.is_outdated(passwords._nobodys())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603  # the program above


async def test_password_is_hashed_anew_when_hashes_are_made_otherwise(engine: AsyncEngine) -> None:
    await add(engine)
    weak = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE account SET password = :weak"), {"weak": weak})
    await enter(engine)
    kept = await value(engine, "SELECT password FROM account")
    assert "m=65536" in kept
    await enter(engine)
    assert await value(engine, "SELECT password FROM account") == kept
