"""Use cases that launch a draft, or start a mailing now instead of at its start.

Both write their audit log entry in the transaction that makes the change.
"""

from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access.model import Actor
from mailer.clock import database_clock
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim
from mailer.mailing import audience, store
from mailer.mailing.approval import ensure_approved
from mailer.mailing.errors import MailingChangedError
from mailer.mailing.model import Mailing
from mailer.mailing.service import change_state, ensure_consistent, lock_for, route_columns

log = structlog.get_logger()


async def launch(  # noqa: PLR0913  # the draft, who launches it, and what they have seen
    engine: AsyncEngine,
    mailing_id: int,
    actor: Actor,
    claim: IdempotencyClaim | None = None,
    *,
    approval_above: int | None = None,
    content_digest: str | None = None,
) -> Mailing:
    """Launch a draft: it is scheduled. Workers start it at once when it is already due.

    `content_digest` is that of the draft that the user has seen, if it is known.

    Raises `MailingNotFoundError`, `MailingNotDraftError`, `MailingChangedError`,
    `ApprovalRequiredError`, and `InvalidError` when the end of the draft has passed or its gateway
    is not configured any more.
    """
    async with engine.begin() as connection:
        done = await do_once(
            connection,
            claim,
            lambda: _launch(connection, mailing_id, actor, approval_above, content_digest),
        )
        launched = await store.get(connection, mailing_id)
    if not done.is_repeat:
        log.info("mailing_launched", mailing_id=mailing_id, clients=launched.clients_count)
    return launched


async def start_now(
    engine: AsyncEngine,
    mailing_id: int,
    actor: Actor,
    *,
    approval_above: int | None = None,
    content_digest: str | None = None,
) -> Mailing:
    """Set the start of a scheduled mailing or a draft to now, and launch the draft.

    `content_digest` is as for `launch`. Raises what `launch` raises, `MailingEndedError`, and
    `MailingRunsError` for other mailings.
    """
    async with engine.begin() as connection:
        mailing = await lock_for(connection, "start", mailing_id)
        _ensure_unchanged(mailing, content_digest)
        start = {"datetime_start": database_clock.now()}
        if mailing.is_draft:
            await _launch_locked(connection, mailing, actor, approval_above, start)
        else:
            ensure_consistent(mailing, start)
            await change_state(connection, mailing, actor, "mailing_changed", start)
        started = await store.get(connection, mailing_id)
    log.info("mailing_started_now", mailing_id=mailing_id, clients=started.clients_count)
    return started


def _ensure_unchanged(mailing: Mailing, content_digest: str | None) -> None:
    """Raise `MailingChangedError` if a locked mailing is not the one that the user has seen."""
    if content_digest not in {None, mailing.content_digest}:
        raise MailingChangedError


async def _launch(
    connection: AsyncConnection,
    mailing_id: int,
    actor: Actor,
    approval_above: int | None,
    content_digest: str | None,
) -> int:
    """Launch a draft in the caller's transaction; return its id."""
    draft = await lock_for(connection, "launch", mailing_id)
    _ensure_unchanged(draft, content_digest)
    return await _launch_locked(connection, draft, actor, approval_above, {})


async def _launch_locked(
    connection: AsyncConnection,
    draft: Mailing,
    actor: Actor,
    approval_above: int | None,
    changes: dict[str, Any],
) -> int:
    """Launch a locked draft with `changes`; return its id."""
    ensure_consistent(draft, changes)
    await ensure_approved(connection, draft, actor, approval_above)
    columns = {
        **changes,
        **await route_columns(connection, {"gateway": draft.gateway}),
        "status": "scheduled",
        "is_closed": False,
        "clients_count": await audience.count(connection, draft.client_filter),
    }
    return await change_state(connection, draft, actor, "mailing_launched", columns)
