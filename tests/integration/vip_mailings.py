"""Mailings to clients with the tag `vip`, created and changed as by a user."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    DAY,
    add_clients,
    do,
    enqueue_and_replan,
    execute,
    mailing_counts,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.mailing import (
    service,
    starting,
)
from mailer.mailing.model import MailingChange, NewMailing
from mailer.statistics.verify import find_differences


def after(ahead: timedelta) -> datetime:
    """Return the moment that is `ahead` of now."""
    return datetime.now(UTC) + ahead


async def create_mailing(engine: AsyncEngine, **fields: Any) -> int:
    """Create a mailing to the tag `vip` that is due now and ends in three days; return its id."""
    defaults: dict[str, Any] = {
        "datetime_start": after(timedelta()),
        "datetime_end": after(3 * DAY),
        "text": "Tonight only.",
        "client_filter": "vip",
    }
    return (await service.create(engine, NewMailing(**defaults | fields), COMMAND_LINE)).id


async def start_mailing(engine: AsyncEngine, **fields: Any) -> int:
    """Create a mailing as `create_mailing` does, start it, and enqueue its audience."""
    mailing_id = await create_mailing(engine, **fields)
    await do(engine, starting.start_due)
    await enqueue_and_replan(engine)
    return mailing_id


async def change_mailing(engine: AsyncEngine, mailing_id: int, **fields: Any) -> None:
    await service.change(engine, mailing_id, MailingChange(**fields), COMMAND_LINE)


async def set_tag(engine: AsyncEngine, client: int, tag: str) -> None:
    await execute(engine, f"UPDATE client SET tag = '{tag}' WHERE id = {client}")  # noqa: S608  # values of the test


async def add_vips(engine: AsyncEngine, count: int, **fields: str) -> list[int]:
    """Create clients with the tag `vip`; return their ids."""
    clients = await add_clients(engine, count, **fields)
    for client in clients:
        await set_tag(engine, client, "vip")
    return clients


def window(opens: timedelta, closes: timedelta) -> dict[str, str]:
    """Return the fields of a sending window in UTC whose times are relative to now."""
    return {
        "send_interval_time_start": f"{after(opens):%H:%M}",
        "send_interval_time_end": f"{after(closes):%H:%M}",
    }


async def is_consistent(engine: AsyncEngine, mailing_id: int) -> bool:
    """Return whether all counters add up and `clients_count` equals the number of messages."""
    count_query = "SELECT clients_count FROM mailing WHERE id = "
    messages = sum((await mailing_counts(engine, mailing_id)).values())
    return (
        await find_differences(engine) == []
        and await value(engine, f"{count_query}{mailing_id}") == messages
    )
