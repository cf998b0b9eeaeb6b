"""A value that is already in use is reported as a conflict; other wrong values are not.

The database refuses both. Values that it refuses for another reason never get so far: they are
validated before. If one did, its error must not claim that a value is in use.
"""

from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import keys, users
from mailer.access.model import COMMAND_LINE
from mailer.client import store
from mailer.client.model import ClientChange, NewClient

TOO_LONG_TAG = "x" * 1_000
TOO_SHORT_PHONE = "7916"
TOO_LONG_USER_NAME = "x" * 256
TOO_LONG_KEY_NAME = "x" * 65


async def add_client(connection: Any, phone: str, tag: str | None = None) -> None:
    await store.create(connection, NewClient(phone=phone, tag=tag))


async def test_a_used_phone_is_a_conflict_but_other_violations_are_not(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as connection:
        await add_client(connection, "79160000001")
        await add_client(connection, "79160000002")
    for phone, tag, expected_error in (
        ("79160000001", None, store.PhoneTakenError),
        ("79160000003", TOO_LONG_TAG, IntegrityError),
        (TOO_SHORT_PHONE, None, IntegrityError),
    ):
        async with engine.connect() as connection:
            with pytest.raises(expected_error):
                await add_client(connection, phone, tag)
    async with engine.connect() as connection:
        with pytest.raises(IntegrityError):
            await store.change(connection, 2, ClientChange(tag=TOO_LONG_TAG))


async def test_a_used_name_is_a_conflict_but_a_too_long_one_is_not(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as connection:
        await users.create(connection, "ann", "viewer", "hash", COMMAND_LINE)
        await keys.create(connection, keys.NewKey(name="shop", scope="read"), COMMAND_LINE)
    for name, expected_error in (
        ("Ann", users.UserNameTakenError),
        (TOO_LONG_USER_NAME, IntegrityError),
    ):
        async with engine.connect() as connection:
            with pytest.raises(expected_error):
                await users.create(connection, name, "viewer", "hash", COMMAND_LINE)
    for name, expected_key_error in (
        ("shop", keys.KeyNameTakenError),
        (TOO_LONG_KEY_NAME, IntegrityError),
    ):
        async with engine.connect() as connection:
            with pytest.raises(expected_key_error):
                await keys.create(connection, keys.NewKey(name=name, scope="read"), COMMAND_LINE)
