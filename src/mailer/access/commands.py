"""What `mailer keys` does, on the database that a running mailer uses."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import keys
from mailer.access.model import COMMAND_LINE
from mailer.validation import check

HEADS = ("id", "name", "scope", "made (UTC)", "last used", "expires", "state")


async def make_key(engine: AsyncEngine, name: str, scope: str, days: int | None) -> str:
    """Make a key that is good for so many days, or for ever; return what it shows.

    Raises `InvalidError` and `KeyNameTakenError`.
    """
    now = datetime.now(UTC)
    expires_at = None if days is None else now + timedelta(days=days)
    new = check(keys.NewKey, {"name": name, "scope": scope, "expires_at": expires_at}, now)
    async with engine.begin() as connection:
        _, secret = await keys.add(connection, new, COMMAND_LINE)
    return secret


async def list_keys(engine: AsyncEngine) -> list[str]:
    """Return a table of all keys, the newest first, line by line."""
    async with engine.connect() as connection:
        found = await keys.every(connection)
    now = datetime.now(UTC)
    return list(_table([HEADS, *(_row(key, now) for key in found)]))


async def revoke_key(engine: AsyncEngine, name: str) -> None:
    """End the key of this name at once and for good; raises `KeyNotFoundError`."""
    async with engine.begin() as connection:
        key = await keys.of_name(connection, name)
        await keys.revoke(connection, key.id, COMMAND_LINE)


def _row(key: keys.Key, now: datetime) -> tuple[str, ...]:
    moments = (key.created_at, key.last_used_at, key.expires_at)
    made, used, expires = (each and f"{each.astimezone(UTC):%Y-%m-%d %H:%M}" for each in moments)
    return (
        str(key.id),
        key.name,
        key.scope,
        made or "",
        used or "never",
        expires or "never",
        key.state(now),
    )


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
