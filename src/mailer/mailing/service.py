"""Use cases of mailings: create, change, pause, resume, cancel, retry, delete.

Each one writes its audit log entry in the transaction that makes the change. A request with an
Idempotency-Key has a `claim`. Its repeat does not make the change again, and only does what was
left to do, such as waiting until workers have stopped.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from sqlalchemy import func, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor
from mailer.clock import database_clock
from mailer.errors import InvalidError
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim
from mailer.mailing import audience, enqueuing, stop_number, store
from mailer.mailing.actions import Action, ensure_allowed
from mailer.mailing.model import (
    Mailing,
    MailingChange,
    MailingNotFoundError,
    MailingStartedError,
    NewMailing,
    StopTimeoutError,
    missing_window_bound,
)
from mailer.mailing.store import notify_mailings_changed

log = structlog.get_logger()

REPLAN_FIELDS = frozenset(
    {"client_filter", "datetime_end", "send_interval_time_start", "send_interval_time_end"}
)
"""Fields of which a change replans the messages of a started mailing."""
AUDITED_FIELDS = frozenset({*NewMailing.__struct_fields__, "status"})
"""Fields of a mailing that the audit log records."""


async def create(
    engine: AsyncEngine, new: NewMailing, actor: Actor, claim: IdempotencyClaim | None = None
) -> Mailing:
    """Create a mailing. Workers start it at once when it is already due."""
    async with engine.begin() as connection:
        done = await do_once(connection, claim, lambda: _create(connection, new, actor))
        created = await store.get(connection, done.result["id"])
    if not done.is_repeat:
        log.info("mailing_created", mailing_id=created.id, clients=created.clients_count)
    return created


async def _create(connection: AsyncConnection, new: NewMailing, actor: Actor) -> int:
    clients_count = await audience.count(connection, new.client_filter)
    values = msgspec.structs.asdict(new)
    mailing_id = await store.create(connection, values, clients_count)
    await notify_mailings_changed(connection)
    await _write_audit(connection, actor, "mailing_created", mailing_id, after=values)
    return mailing_id


async def _write_audit(  # noqa: PLR0913  # the fields of an audit log entry
    connection: AsyncConnection,
    actor: Actor,
    action: str,
    mailing_id: int,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write an audit log entry with the audited fields that changed."""
    target = audit.Target("mailing", mailing_id)
    old, new = _audited(before or {}), _audited(after or {})
    await audit.record(connection, actor, action, target, before=old or None, after=new or None)


def _audited(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in values.keys() & AUDITED_FIELDS}


async def change(
    engine: AsyncEngine, mailing_id: int, changes: MailingChange, actor: Actor
) -> Mailing:
    """Change a mailing. After its start, changes apply to messages that were not sent yet.

    Raises `MailingNotFoundError`, `MailingEndedError`, `MailingStartedError`, and `InvalidError`
    when the change does not fit the rest of the mailing.
    """
    async with engine.begin() as connection:
        mailing = await store.get(connection, mailing_id, lock=True)
        is_started = await store.is_started(connection, mailing_id)
        provided = changes.provided_values().items()
        values = {name: value for name, value in provided if value != getattr(mailing, name)}
        _ensure_changeable(mailing, values, is_started=is_started)
        _ensure_consistent(mailing, values)
        if "client_filter" in values:
            clients_count = await audience.count(connection, values["client_filter"])
            # clients who have a message already stay in the audience
            values["clients_count"] = max(clients_count, mailing.created_messages)
        if is_started and values.keys() & REPLAN_FIELDS:
            values |= {"replan_cursor": 0, "is_replanning": True, "replan_stop": None}
            if "client_filter" in values:
                values |= {"filter_changed": True} | enqueuing.audience_as_of_now()
        await store.change(connection, mailing_id, values)
        await notify_mailings_changed(connection)
        if old := {name: getattr(mailing, name) for name, _ in provided if name in values}:
            await _write_audit(
                connection, actor, "mailing_changed", mailing_id, before=old, after=values
            )
        changed = await store.get(connection, mailing_id)
    fields = sorted(values.keys() & NewMailing.__struct_fields__)
    log.info("mailing_changed", mailing_id=mailing_id, fields=fields)
    return changed


def _ensure_changeable(mailing: Mailing, values: dict[str, Any], *, is_started: bool) -> None:
    """Raise an error when the mailing has ended, or the change moves a start that has passed."""
    ensure_allowed("change", mailing, database_clock.now())
    is_start_passed = is_started or mailing.datetime_start <= database_clock.now()
    start = values.get("datetime_start", mailing.datetime_start)
    if is_start_passed and start != mailing.datetime_start:
        raise MailingStartedError


def _ensure_consistent(mailing: Mailing, values: dict[str, Any]) -> None:
    """Raise `InvalidError` when changed and unchanged fields together break a rule."""
    merged = {name: getattr(mailing, name) for name in NewMailing.__struct_fields__} | values
    errors = [
        *MailingChange.broken_rules(merged, database_clock.now()),
        *missing_window_bound(merged),
    ]
    if errors:
        raise InvalidError(errors)


async def delete(engine: AsyncEngine, mailing_id: int, actor: Actor) -> None:
    """Delete a mailing, and wait until no worker sends for it any more.

    Raises `MailingNotFoundError`, and `StopTimeoutError` when a worker does not stop in time. A
    repeated call waits again.
    """
    try:
        async with engine.begin() as connection:
            mailing = await _lock_for(connection, "delete", mailing_id)
            await store.mark_deleted(connection, mailing_id)
            await notify_mailings_changed(connection)
            old = msgspec.structs.asdict(mailing)
            await _write_audit(connection, actor, "mailing_deleted", mailing_id, before=old)
        log.info("mailing_deleted", mailing_id=mailing_id)
    except MailingNotFoundError:
        await _wait_until_stopped(engine, mailing_id)
        raise
    await _wait_until_stopped(engine, mailing_id)


async def pause(
    engine: AsyncEngine, mailing_id: int, actor: Actor, claim: IdempotencyClaim | None = None
) -> Mailing:
    """Pause a mailing, and wait until no worker starts a request for it any more.

    Raises `MailingNotFoundError`, `MailingEndedError`, `MailingPausedError`, and
    `StopTimeoutError` when a worker does not stop in time.
    """
    async with engine.begin() as connection:
        done = await do_once(connection, claim, lambda: _pause(connection, mailing_id, actor))
    if not done.is_repeat:
        log.info("mailing_paused", mailing_id=mailing_id)
    return await _get_stopped(engine, mailing_id)


async def _pause(connection: AsyncConnection, mailing_id: int, actor: Actor) -> int:
    mailing = await _lock_for(connection, "pause", mailing_id)
    return await _change_state(connection, mailing, actor, "mailing_paused", {"status": "paused"})


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
    mailing = await _lock_for(connection, "resume", mailing_id)
    is_started = await store.is_started(connection, mailing_id)
    values = {"status": "running" if is_started else "scheduled"}
    return await _change_state(connection, mailing, actor, "mailing_resumed", values)


async def cancel(
    engine: AsyncEngine, mailing_id: int, actor: Actor, claim: IdempotencyClaim | None = None
) -> Mailing:
    """Cancel a mailing permanently, and wait until no worker sends for it any more.

    Workers then cancel its unsent messages in chunks. Raises `MailingNotFoundError`,
    `MailingEndedError`, and `StopTimeoutError` when a worker does not stop in time.
    """
    async with engine.begin() as connection:
        done = await do_once(connection, claim, lambda: _cancel(connection, mailing_id, actor))
    if not done.is_repeat:
        log.info("mailing_cancelled", mailing_id=mailing_id)
    return await _get_stopped(engine, mailing_id)


async def _cancel(connection: AsyncConnection, mailing_id: int, actor: Actor) -> int:
    mailing = await _lock_for(connection, "cancel", mailing_id)
    is_started = await store.is_started(connection, mailing_id)
    values = {
        "status": "cancelled",
        "retry_before": None,
        "is_closed": not is_started,
        "is_settled": not is_started,
    }
    return await _change_state(connection, mailing, actor, "mailing_cancelled", values)


async def retry(
    engine: AsyncEngine, mailing_id: int, actor: Actor, claim: IdempotencyClaim | None = None
) -> Mailing:
    """Send undelivered and unknown messages again; a finished mailing runs again.

    Workers then schedule the messages in chunks. Raises `MailingNotFoundError`,
    `MailingEndedError` and `NothingToRetryError`.
    """
    async with engine.begin() as connection:
        done = await do_once(connection, claim, lambda: _retry(connection, mailing_id, actor))
        retried = await store.get(connection, mailing_id)
    if not done.is_repeat:
        log.info("mailing_retried", mailing_id=mailing_id)
    return retried


async def _retry(connection: AsyncConnection, mailing_id: int, actor: Actor) -> int:
    mailing = await _lock_for(connection, "retry", mailing_id)
    values = {
        "retry_before": func.clock_timestamp(),
        "retry_cursor": 0,
        "is_closed": False,
        "is_settled": False,
    }
    if mailing.status == "finished":
        values["status"] = "running"
    return await _change_state(connection, mailing, actor, "mailing_retried", values)


async def _change_state(
    connection: AsyncConnection, mailing: Mailing, actor: Actor, action: str, values: dict[str, Any]
) -> int:
    """Change the state of a locked mailing, write the audit log, and return the mailing's id."""
    await store.change(connection, mailing.id, values)
    await notify_mailings_changed(connection)
    before = {"status": mailing.status} if "status" in values else None
    await _write_audit(connection, actor, action, mailing.id, before=before, after=values)
    return mailing.id


async def _lock_for(connection: AsyncConnection, action: Action, mailing_id: int) -> Mailing:
    """Lock and return a mailing that allows an action; raises the errors of `ensure_allowed`."""
    mailing = await store.get(connection, mailing_id, lock=True)
    ensure_allowed(action, mailing, database_clock.now())
    return mailing


STOP_TIMEOUT = 30.0
"""Seconds to wait until every worker has stopped sending for a mailing."""
STOP_POLL_INTERVAL = 0.02
"""Seconds between checks whether workers have stopped; no connection is held in between."""
# No need to wait when the mailing has not started, or was resumed meanwhile.
SENDS_NOTHING = text("""
    SELECT NOT EXISTS (SELECT FROM mailing WHERE id = :mailing_id AND audience_until IS NOT NULL)
        OR EXISTS (
            SELECT FROM mailing
            WHERE id = :mailing_id AND status = 'running' AND deleted_at IS NULL)""")


async def _get_stopped(engine: AsyncEngine, mailing_id: int) -> Mailing:
    """Wait until no worker sends for a mailing, and return the mailing."""
    await _wait_until_stopped(engine, mailing_id)
    async with engine.connect() as connection:
        return await store.get(connection, mailing_id)


async def _wait_until_stopped(engine: AsyncEngine, mailing_id: int) -> None:
    """Wait until every worker has read the committed change that stops a mailing."""
    async with engine.begin() as connection:
        if await _sends_nothing(connection, mailing_id):
            return
        number = await stop_number.next_number(connection)
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            while not await _is_stopped(engine, mailing_id, number):  # noqa: ASYNC110  # other processes cannot set an event
                await asyncio.sleep(STOP_POLL_INTERVAL)
    except TimeoutError as error:
        raise StopTimeoutError from error


async def _is_stopped(engine: AsyncEngine, mailing_id: int, number: int) -> bool:
    async with engine.connect() as connection:
        return await stop_number.is_applied(connection, number) or await _sends_nothing(
            connection, mailing_id
        )


async def _sends_nothing(connection: AsyncConnection, mailing_id: int) -> bool:
    """Return whether no wait is needed: the mailing has not started, or it runs again."""
    return bool((await connection.execute(SENDS_NOTHING, {"mailing_id": mailing_id})).scalar_one())
