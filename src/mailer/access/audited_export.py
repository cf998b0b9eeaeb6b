"""Exports of personal data: downloads that the audit log has before their first byte is sent."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit, reauthorize
from mailer.access.model import Actor

ExportPart = TypeVar("ExportPart")


async def stream_audited(  # noqa: PLR0913, PLR0917  # the fields of an entry of the audit log
    engine: AsyncEngine,
    actor: Actor,
    parts: AsyncGenerator[ExportPart, None],
    action: str,
    target: audit.Target,
    after: audit.AuditedFields | None = None,
) -> AsyncGenerator[ExportPart, None]:
    """Yield the parts of an export, once the audit log has its entry.

    Raises `AccessRevokedError` midway when `actor` loses the right to read.
    """
    is_audited = False
    async with aclosing(
        reauthorize.stream_while_authorized(engine, actor, "read", parts)
    ) as authorized_parts:
        async for part in authorized_parts:
            if not is_audited:
                async with engine.begin() as connection:
                    await audit.record(connection, actor, action, target, after=after)
                is_audited = True
            yield part
