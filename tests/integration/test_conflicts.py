"""A conflict is said only where its own constraint was violated."""

from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import accounts, keys
from mailer.access.model import COMMAND_LINE
from mailer.client import store
from mailer.client.model import ClientChange, NewClient


async def add_client(connection: Any, phone: str, tag: str | None = None) -> None:
    await store.add(connection, NewClient(phone=phone, tag=tag))


async def test_phone_that_is_taken_is_a_conflict_and_a_tag_too_long_is_none(
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


async def test_name_that_is_taken_is_a_conflict_and_one_too_long_is_none(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as connection:
        await accounts.add(connection, "ann", "viewer", "hash", COMMAND_LINE)
        await keys.add(connection, keys.NewKey(name="shop", scope="read"), COMMAND_LINE)
    for name, expected in (("Ann", accounts.AccountNameTakenError), ("x" * 256, IntegrityError)):
        async with engine.connect() as connection:
            with pytest.raises(expected):
                await accounts.add(connection, name, "viewer", "hash", COMMAND_LINE)
    for name, refused in (("shop", keys.KeyNameTakenError), ("x" * 65, IntegrityError)):
        async with engine.connect() as connection:
            with pytest.raises(refused):
                await keys.add(connection, keys.NewKey(name=name, scope="read"), COMMAND_LINE)
