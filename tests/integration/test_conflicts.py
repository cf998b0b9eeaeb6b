"""Only a violation of the unique constraint is reported as a conflict."""

from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import keys, users
from mailer.access.model import COMMAND_LINE
from mailer.client import store
from mailer.client.model import ClientChange, NewClient


async def add_client(connection: Any, phone: str, tag: str | None = None) -> None:
    await store.create(connection, NewClient(phone=phone, tag=tag))


async def test_a_used_phone_is_a_conflict_but_other_violations_are_not(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as connection:
        await add_client(connection, "79160000001")
        await add_client(connection, "79160000002")
    for phone, tag, expected in (
        ("79160000001", None, store.PhoneTakenError),
        ("79160000003", "x" * 1_000, IntegrityError),
        ("7916", None, IntegrityError),
    ):
        async with engine.connect() as connection:
            with pytest.raises(expected):
                await add_client(connection, phone, tag)
    async with engine.connect() as connection:
        with pytest.raises(IntegrityError):
            await store.change(connection, 2, ClientChange(tag="x" * 1_000))


async def test_a_used_name_is_a_conflict_but_a_too_long_one_is_not(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as connection:
        await users.create(connection, "ann", "viewer", "hash", COMMAND_LINE)
        await keys.create(connection, keys.NewKey(name="shop", scope="read"), COMMAND_LINE)
    for name, expected in (("Ann", users.UserNameTakenError), ("x" * 256, IntegrityError)):
        async with engine.connect() as connection:
            with pytest.raises(expected):
                await users.create(connection, name, "viewer", "hash", COMMAND_LINE)
    for name, expected_error in (("shop", keys.KeyNameTakenError), ("x" * 65, IntegrityError)):
        async with engine.connect() as connection:
            with pytest.raises(expected_error):
                await keys.create(connection, keys.NewKey(name=name, scope="read"), COMMAND_LINE)
