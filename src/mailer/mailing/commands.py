"""What `mailer resume-after-restore` does."""

from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.commands import at_the_command_line
from mailer.mailing import restore
from mailer.mailing.restore import Restored

LONGEST_TEXT = 40
"""Characters of a mailing's text that are shown."""


async def find_restored(engine: AsyncEngine) -> Restored | None:
    """Return what a restored database would send; None when nothing is held."""
    async with engine.connect() as connection:
        return await restore.find_restored(connection)


async def resume(engine: AsyncEngine, held_since: datetime) -> None:
    """Let a restored database send; raises `NotHeldError`."""
    await restore.resume(engine, held_since, at_the_command_line())


def describe(restored: Restored) -> Iterator[str]:
    """Return what a restored database would send, line by line."""
    until = restored.hold.data_until
    yield f"This database was restored. Nothing is sent since {_moment(restored.hold.since)} UTC."
    if until is not None:
        yield f"The backup contains changes up to {_moment(until)} UTC."
    if not restored.mailings:
        yield "No mailing has messages to send."
        return
    messages, mailings = restored.messages_count, restored.mailings_count
    yield f"To be sent: {messages:,} messages of {mailings:,} mailings."
    yield "Messages sent after the backup was made will be sent again, with the same id."
    yield ""
    for mailing in restored.mailings:
        line = " ".join(mailing.text.split())
        shown = line if len(line) <= LONGEST_TEXT else f"{line[: LONGEST_TEXT - 1]}…"
        yield (
            f"  mailing {mailing.id}, {mailing.status}, {_moment(mailing.datetime_start)} to"
            f" {_moment(mailing.datetime_end)}: {mailing.messages:,} messages: {shown}"
        )
    if left_out := restored.mailings_count - len(restored.mailings):
        yield f"  and {left_out:,} more"
    yield ""
    yield "Cancel first, on the pages or by the API, what must not go out."


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"
