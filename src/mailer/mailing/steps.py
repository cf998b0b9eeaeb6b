"""What is being done with a mailing's messages beside sending them."""

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.mailing.model import MailingNotFoundError


class Steps(msgspec.Struct, frozen=True):
    """Where a mailing stands, beyond its status."""

    has_begun: bool
    """Whether its audience is being or has been taken."""
    is_taking: bool
    """Whether of its audience there is more to take."""
    is_replanning: bool
    """Whether its audience is gone over again after a change; nothing is sent meanwhile."""
    is_retrying: bool
    """Whether what was given up is being scheduled again."""
    is_retired: bool
    """Whether its messages are past their retention: only their counts are kept."""


STEPS = text("""
    SELECT audience_until IS NOT NULL,
        coalesce(audience_cursor < audience_until AND NOT replanning, false), replanning,
        retry_before IS NOT NULL, retired_at IS NOT NULL
    FROM mailing WHERE id = :mailing_id AND deleted_at IS NULL""")


async def look(connection: AsyncConnection, mailing_id: int) -> Steps:
    """Return where a mailing stands; raises `MailingNotFoundError`."""
    row = (await connection.execute(STEPS, {"mailing_id": mailing_id})).one_or_none()
    if row is None:
        raise MailingNotFoundError
    return Steps(*row)
