"""The command `mailer users set-notices`, without the parsing of its arguments."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access.commands import change_user
from mailer.access.model import Actor
from mailer.clock import database_clock
from mailer.notice import recipients
from mailer.notice.model import NoticeSettings
from mailer.validation import check


async def set_notices(
    engine: AsyncEngine, name: str, user_id: int | None, values: Mapping[str, Any]
) -> None:
    """Set the address and the notices of the user with this name, and with this id if it is given.

    `values` are the fields of `NoticeSettings`. Raises `InvalidError`, `UserNotFoundError`, and
    `AmbiguousUserError` if an id is needed.
    """
    wanted = check(NoticeSettings, values, database_clock.now())

    async def save(connection: AsyncConnection, found_id: int, by: Actor) -> None:
        await recipients.save(connection, found_id, wanted, by)

    await change_user(engine, name, user_id, save)
