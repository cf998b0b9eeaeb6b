"""Approval of large mailings by a second user, if `MAILER_REQUIRE_APPROVAL` is set.

A mailing for more clients than a limit is then saved as a draft by one user, or API key, and
launched by another one. After that, its text and its audience are fixed. The audit log tells who
has created or changed the draft last.

`approval_above` is the limit, a number of clients; None if no approval is required.
"""

from sqlalchemy import ARRAY, String, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access.model import Actor
from mailer.mailing.client_filter import ClientFilter
from mailer.mailing.errors import ApprovalRequiredError
from mailer.mailing.field_types import Purpose
from mailer.mailing.model import Mailing
from mailer.mailing.reach import count_reached

APPROVED_FIELDS = frozenset({"text", "client_filter", "purpose"})
"""Fields that are fixed once a large mailing is launched: what is sent, and to whom."""

# Of the text, the audience or the purpose: who changes only the name of a draft does not write it.
LAST_AUTHOR = text("""
    SELECT actor_kind, actor_id FROM audit
    WHERE target_kind = 'mailing' AND target_id = :mailing_id
        AND (action = 'mailing_created'
            OR (action = 'mailing_changed' AND after ?| :approved_fields))
    ORDER BY id DESC LIMIT 1""").bindparams(bindparam("approved_fields", type_=ARRAY(String)))


async def ensure_small(
    connection: AsyncConnection,
    client_filter: ClientFilter,
    purpose: Purpose,
    approval_above: int | None,
) -> None:
    """Raise `ApprovalRequiredError` if an audience is so large that a second user must launch."""
    if approval_above is None:
        return
    if await count_reached(connection, client_filter, purpose) > approval_above:
        raise ApprovalRequiredError


async def ensure_approved(
    connection: AsyncConnection, draft: Mailing, actor: Actor, approval_above: int | None
) -> None:
    """Raise `ApprovalRequiredError` if `actor` wrote a large draft last, and so may not launch it.

    The draft must be locked, so that nobody changes it meanwhile.
    """
    values = {"mailing_id": draft.id, "approved_fields": sorted(APPROVED_FIELDS)}
    author = (await connection.execute(LAST_AUTHOR, values)).one_or_none()
    if author is None or (author.actor_kind, author.actor_id) == (actor.kind, actor.id):
        await ensure_small(connection, draft.client_filter, draft.purpose, approval_above)
