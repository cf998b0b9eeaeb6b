"""Use cases of mailings: create, change, pause, resume, cancel, retry, delete.

`launching.py` has those that launch a draft or start a mailing now.

Each one writes its audit log entry in the transaction that makes the change.

A request with the header `Idempotency-Key` has a `claim`. When the caller repeats such a request,
`do_once` finds that the change was made and does not make it again. Only what follows the change
runs again, such as the wait until workers have stopped. The changes, such as `_create`, return the
mailing's id; `do_once` stores it, and returns it also for a repeat, as `result["id"]`.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access.model import Actor
from mailer.clock import database_clock
from mailer.errors import FieldError, InvalidError
from mailer.gateway import routes
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim
from mailer.mailing import audience, enqueuing, replanning, rerouting, retrying, store
from mailer.mailing.actions import Action, ensure_allowed
from mailer.mailing.approval import APPROVED_FIELDS, ensure_small
from mailer.mailing.auditing import write_audit_entry
from mailer.mailing.errors import (
    MailingEndedError,
    MailingNotFoundError,
    MailingPausedError,
    MailingStartedError,
    PurposeFixedError,
    TooManyTextsError,
)
from mailer.mailing.model import (
    MAX_TEXT_VERSIONS,
    Mailing,
    MailingChange,
    NewMailing,
    missing_window_bound,
    passed_end,
)
from mailer.mailing.stopping import wait_until_stopped
from mailer.mailing.store import notify_mailings_changed
from mailer.statuses import DRAFT

log = structlog.get_logger()

REPLAN_FIELDS = frozenset(
    {"client_filter", "datetime_end", "send_interval_time_start", "send_interval_time_end"}
)
"""Fields of which a change replans the messages of a started mailing."""


DRAFT_COLUMNS = {"status": DRAFT, "is_closed": True}
"""Columns of a new draft. Being closed, it is no work of the dispatcher."""


async def create(
    engine: AsyncEngine,
    new: NewMailing,
    actor: Actor,
    claim: IdempotencyClaim | None = None,
    *,
    approval_above: int | None = None,
) -> Mailing:
    """Create a mailing. Unless it is a draft, workers start it at once when it is already due.

    Raises `InvalidError`, and `ApprovalRequiredError` if it is no draft and reaches more than
    `approval_above` clients.
    """
    async with engine.begin() as connection:
        done = await do_once(
            connection, claim, lambda: _create(connection, new, actor, approval_above)
        )
        created = await store.get(connection, done.result["id"])
    if not done.is_repeat:
        log.info("mailing_created", mailing_id=created.id, clients=created.clients_count)
    return created


async def _create(
    connection: AsyncConnection, new: NewMailing, actor: Actor, approval_above: int | None
) -> int:
    """Create a mailing in the caller's transaction; return its id."""
    await audience.ensure_lists_exist(connection, new.client_filter)
    clients_count = await audience.count(connection, new.client_filter)
    values = msgspec.structs.asdict(new)
    columns = values | await route_columns(connection, values)
    if values.pop("draft"):
        values["status"] = DRAFT
        columns |= DRAFT_COLUMNS
    else:
        await ensure_small(connection, new.client_filter, new.purpose, approval_above)
    del columns["draft"]
    mailing_id = await store.create(connection, columns, clients_count)
    await notify_mailings_changed(connection)
    await write_audit_entry(connection, actor, "mailing_created", mailing_id, after=values)
    return mailing_id


async def change(
    engine: AsyncEngine,
    mailing_id: int,
    changes: MailingChange,
    actor: Actor,
    *,
    approval_above: int | None = None,
) -> Mailing:
    """Change a mailing. After its start, changes apply to messages that were not sent yet.

    Raises `MailingNotFoundError`, `MailingEndedError`, `MailingStartedError`, `PurposeFixedError`,
    `TooManyTextsError`, and `InvalidError` when the change does not fit the rest of the mailing.
    Raises `ApprovalRequiredError` when a second user has to approve the change: see `approval.py`.
    """
    async with engine.begin() as connection:
        mailing = await store.get(connection, mailing_id, lock=True)
        is_started = await store.is_started(connection, mailing_id)
        provided = changes.provided_values()
        new_values = {
            name: value for name, value in provided.items() if value != getattr(mailing, name)
        }
        old_values = {name: getattr(mailing, name) for name in new_values}
        _ensure_changeable(mailing, new_values, is_started=is_started)
        ensure_consistent(mailing, new_values, may_have_passed=mailing.is_draft)
        if not mailing.is_draft and new_values.keys() & APPROVED_FIELDS:
            client_filter = new_values.get("client_filter", mailing.client_filter)
            purpose = new_values.get("purpose", mailing.purpose)
            await ensure_small(connection, client_filter, purpose, approval_above)
        columns = new_values | await _derived_columns(
            connection, mailing, new_values, is_started=is_started
        )
        await store.change(connection, mailing_id, columns)
        if is_started and "gateway" in new_values:
            await rerouting.request(connection, mailing_id)
        await notify_mailings_changed(connection)
        if new_values:
            await write_audit_entry(
                connection,
                actor,
                "mailing_changed",
                mailing_id,
                before=old_values,
                after=new_values,
            )
        changed = await store.get(connection, mailing_id)
    log.info("mailing_changed", mailing_id=mailing_id, fields=sorted(new_values))
    return changed


async def _derived_columns(
    connection: AsyncConnection,
    mailing: Mailing,
    new_values: Mapping[str, Any],
    *,
    is_started: bool,
) -> dict[str, Any]:
    """Return the other columns that change with the fields in `new_values`.

    A new filter changes the number of clients, and a new gateway the route. Some changes of a
    started mailing also make workers replan its messages, or enqueue its audience again.
    """
    columns = await route_columns(connection, new_values)
    has_new_filter = "client_filter" in new_values
    if has_new_filter:
        await audience.ensure_lists_exist(connection, new_values["client_filter"])
        clients_count = await audience.count(connection, new_values["client_filter"])
        # every client who has a message is counted, even one whom the new filter excludes
        columns["clients_count"] = max(clients_count, mailing.created_messages)
    if is_started and new_values.keys() & REPLAN_FIELDS:
        columns |= replanning.request_columns(has_new_filter=has_new_filter)
        if has_new_filter:
            columns |= enqueuing.audience_as_of_now()
    return columns


async def route_columns(connection: AsyncConnection, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the column `route` if `values` has a gateway; raises `InvalidError` for a wrong one.

    A gateway is wrong if the newest configuration does not have it.
    """
    if "gateway" not in values:
        return {}
    gateway = values["gateway"]
    if gateway is None:
        return {"route": None}
    names = await routes.gateway_names(connection)
    if gateway not in names:
        raise InvalidError([FieldError("gateway", f"must be one of: {', '.join(names)}")])
    return {"route": await routes.find_route(connection, [gateway])}


def _ensure_changeable(
    mailing: Mailing, new_values: Mapping[str, Any], *, is_started: bool
) -> None:
    """Raise an error when the mailing has ended, or has started and a field is fixed since then.

    Messages to clients who have opted out were cancelled at the start, so the purpose is fixed too.
    """
    ensure_allowed("change", mailing, database_clock.now())
    is_due = mailing.datetime_start <= database_clock.now() and not mailing.is_draft
    is_start_passed = is_started or is_due
    if is_start_passed and "datetime_start" in new_values:
        raise MailingStartedError
    if is_start_passed and "purpose" in new_values:
        raise PurposeFixedError
    if "text" in new_values and mailing.text_version >= MAX_TEXT_VERSIONS:
        raise TooManyTextsError


def ensure_consistent(
    mailing: Mailing, new_values: Mapping[str, Any], *, may_have_passed: bool = False
) -> None:
    """Raise `InvalidError` when changed and unchanged fields together break a rule.

    `may_have_passed` is whether the end may have passed.
    """
    now = database_clock.now()
    merged = {name: getattr(mailing, name) for name in MailingChange.__struct_fields__}
    merged |= new_values
    errors = [*MailingChange.broken_rules(merged, now), *missing_window_bound(merged)]
    if not may_have_passed:
        errors += passed_end(merged, now)
    if errors:
        raise InvalidError(errors)


async def delete(engine: AsyncEngine, mailing_id: int, actor: Actor) -> None:
    """Delete a mailing, and wait until no worker sends for it any more.

    Raises `StopTimeoutError` when a worker does not stop in time. A repeated call waits again, and
    then raises `MailingNotFoundError`, like a call for a mailing that never existed.
    """
    try:
        async with engine.begin() as connection:
            mailing = await lock_for(connection, "delete", mailing_id)
            await store.mark_deleted(connection, mailing_id)
            await notify_mailings_changed(connection)
            old_values = msgspec.structs.asdict(mailing)
            await write_audit_entry(
                connection, actor, "mailing_deleted", mailing_id, before=old_values
            )
        log.info("mailing_deleted", mailing_id=mailing_id)
    except MailingNotFoundError:
        await wait_until_stopped(engine, mailing_id)
        raise
    await wait_until_stopped(engine, mailing_id)


async def pause(
    engine: AsyncEngine, mailing_id: int, actor: Actor, claim: IdempotencyClaim | None = None
) -> Mailing:
    """Pause a mailing, and wait until no worker starts a request for it any more.

    Raises `MailingNotFoundError`, `MailingEndedError`, `MailingPausedError`, and
    `StopTimeoutError` when a worker does not stop in time.
    """
    async with _stopped_if_refused(engine, mailing_id), engine.begin() as connection:
        done = await do_once(connection, claim, lambda: _pause(connection, mailing_id, actor))
    if not done.is_repeat:
        log.info("mailing_paused", mailing_id=mailing_id)
    return await _get_when_stopped(engine, mailing_id)


async def _pause(connection: AsyncConnection, mailing_id: int, actor: Actor) -> int:
    """Pause a mailing in the caller's transaction; return its id."""
    mailing = await lock_for(connection, "pause", mailing_id)
    columns = {"status": "paused"}
    return await change_state(connection, mailing, actor, "mailing_paused", columns)


async def resume(
    engine: AsyncEngine, mailing_id: int, actor: Actor, claim: IdempotencyClaim | None = None
) -> Mailing:
    """Resume a paused mailing: it is `running`, or `scheduled` before its start.

    Raises `MailingNotFoundError`, `MailingEndedError` and `MailingNotPausedError`.
    """
    async with engine.begin() as connection:
        done = await do_once(connection, claim, lambda: _resume(connection, mailing_id, actor))
        resumed = await store.get(connection, mailing_id)
    if not done.is_repeat:
        log.info("mailing_resumed", mailing_id=mailing_id)
    return resumed


async def _resume(connection: AsyncConnection, mailing_id: int, actor: Actor) -> int:
    """Resume a mailing in the caller's transaction; return its id."""
    mailing = await lock_for(connection, "resume", mailing_id)
    is_started = await store.is_started(connection, mailing_id)
    columns = {"status": "running" if is_started else "scheduled"}
    return await change_state(connection, mailing, actor, "mailing_resumed", columns)


async def cancel(
    engine: AsyncEngine, mailing_id: int, actor: Actor, claim: IdempotencyClaim | None = None
) -> Mailing:
    """Cancel a mailing permanently, and wait until no worker sends for it any more.

    Workers then cancel its unsent messages in chunks. Raises `MailingNotFoundError`,
    `MailingEndedError`, and `StopTimeoutError` when a worker does not stop in time.
    """
    async with _stopped_if_refused(engine, mailing_id), engine.begin() as connection:
        done = await do_once(connection, claim, lambda: _cancel(connection, mailing_id, actor))
    if not done.is_repeat:
        log.info("mailing_cancelled", mailing_id=mailing_id)
    return await _get_when_stopped(engine, mailing_id)


async def _cancel(connection: AsyncConnection, mailing_id: int, actor: Actor) -> int:
    """Cancel a mailing in the caller's transaction; return its id."""
    mailing = await lock_for(connection, "cancel", mailing_id)
    is_started = await store.is_started(connection, mailing_id)
    columns = {
        "status": "cancelled",
        "retry_before": None,  # ends a retry
        # without messages there is nothing left to do
        "is_closed": not is_started,
        "is_settled": not is_started,
    }
    return await change_state(connection, mailing, actor, "mailing_cancelled", columns)


async def retry(
    engine: AsyncEngine, mailing_id: int, actor: Actor, claim: IdempotencyClaim | None = None
) -> Mailing:
    """Send undelivered and unknown messages again; a finished mailing runs again.

    Workers then schedule the messages in chunks. Raises `MailingNotFoundError`,
    `NothingToRetryError`, and `MailingEndedError` when it is cancelled or its end has passed.
    """
    async with engine.begin() as connection:
        done = await do_once(connection, claim, lambda: _retry(connection, mailing_id, actor))
        retried = await store.get(connection, mailing_id)
    if not done.is_repeat:
        log.info("mailing_retried", mailing_id=mailing_id)
    return retried


async def _retry(connection: AsyncConnection, mailing_id: int, actor: Actor) -> int:
    """Request a retry of a mailing in the caller's transaction; return its id."""
    mailing = await lock_for(connection, "retry", mailing_id)
    columns = retrying.request_columns()
    if mailing.status == "finished":
        columns["status"] = "running"
    return await change_state(connection, mailing, actor, "mailing_retried", columns)


async def change_state(
    connection: AsyncConnection,
    mailing: Mailing,
    actor: Actor,
    action: str,
    columns: dict[str, Any],
) -> int:
    """Change columns of a locked mailing, write the audit log, and return the mailing's id.

    `action` is what was done, in the words of the audit log, such as `mailing_paused`.
    """
    await store.change(connection, mailing.id, columns)
    await notify_mailings_changed(connection)
    # of the columns of all these changes, the audit log records only these
    recorded = columns.keys() & {"status", "datetime_start"}
    before = {name: getattr(mailing, name) for name in recorded} or None
    await write_audit_entry(connection, actor, action, mailing.id, before=before, after=columns)
    return mailing.id


async def lock_for(connection: AsyncConnection, action: Action, mailing_id: int) -> Mailing:
    """Lock and return a mailing that allows an action; raises the errors of `ensure_allowed`."""
    mailing = await store.get(connection, mailing_id, lock=True)
    ensure_allowed(action, mailing, database_clock.now())
    return mailing


@asynccontextmanager
async def _stopped_if_refused(engine: AsyncEngine, mailing_id: int) -> AsyncIterator[None]:
    """Refuse to stop a mailing that is stopped already only when no worker sends for it.

    An earlier call may have ended with `StopTimeoutError`, before every worker had stopped.
    """
    try:
        yield
    except (MailingPausedError, MailingEndedError):
        await wait_until_stopped(engine, mailing_id)
        raise


async def _get_when_stopped(engine: AsyncEngine, mailing_id: int) -> Mailing:
    """Wait until no worker sends for a mailing, and return the mailing."""
    await wait_until_stopped(engine, mailing_id)
    async with engine.connect() as connection:
        return await store.get(connection, mailing_id)
