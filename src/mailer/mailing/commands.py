"""What the command `mailer resume-after-restore` does and shows.

A database restored from a backup sends nothing until an admin runs this command, or allows sending
on a page. Messages that were sent after the backup was made would be sent again.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.commands import command_line_actor
from mailer.mailing import restore
from mailer.mailing.restore import Restored

MAX_TEXT_LENGTH = 40
"""Characters of a mailing's text that are shown at most."""


async def find_restored(engine: AsyncEngine) -> Restored | None:
    """Return what a restored database would send; None when sending is allowed."""
    async with engine.connect() as connection:
        return await restore.find_restored(connection)


async def resume(engine: AsyncEngine, held_since: datetime) -> None:
    """Allow a restored database to send.

    `held_since` is the time that `find_restored` returned. Raises `NotHeldError` when the database
    is not held since that time any more.
    """
    await restore.resume(engine, held_since, command_line_actor())


def describe(restored: Restored) -> Iterator[str]:
    """Yield lines of text that describe what a restored database would send."""
    hold = restored.hold
    yield f"This database was restored. Nothing has been sent since {_format(hold.since)} UTC."
    if hold.data_until is not None:
        yield f"The backup contains changes up to {_format(hold.data_until)} UTC."
    if not restored.mailings:
        yield "No mailing has messages to send."
        return
    messages, mailings = restored.messages_count, restored.mailings_count
    yield f"To be sent: {messages:,} messages of {mailings:,} mailings."
    yield "Messages sent after the backup was made will be sent again, with the same id."
    yield ""
    for mailing in restored.mailings:
        yield (
            f"  mailing {mailing.id}, {mailing.status}, {_format(mailing.datetime_start)} to"
            f" {_format(mailing.datetime_end)}: {mailing.messages:,} messages:"
            f" {_shorten(mailing.name or mailing.text)}"
        )
    if left_out := restored.mailings_count - len(restored.mailings):
        yield f"  and {left_out:,} more"
    yield ""
    yield "First cancel the mailings that must not be sent, on the admin pages or by the API."


def _shorten(text: str) -> str:
    """Return a text in one line of at most `MAX_TEXT_LENGTH` characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT_LENGTH else f"{line[: MAX_TEXT_LENGTH - 1]}…"


def _format(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"
