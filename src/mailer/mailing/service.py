"""What people do with mailings: create, change, pause, resume, cancel, retry, delete.

Each is written into the audit log by who did it, in the transaction that does it. A request under
an Idempotency-Key that has done it already, and whose answer was lost, goes on from there.
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
from mailer.mailing import audience, stopping, store
from mailer.mailing.model import (
    ENDED,
    Mailing,
    MailingChange,
    MailingEndedError,
    MailingNotFoundError,
    MailingNotPausedError,
    MailingPausedError,
    MailingStartedError,
    NewMailing,
    NothingToRetryError,
    StillStoppingError,
    half_window,
)
from mailer.mailing.telling import tell

log = structlog.get_logger()

PLANNED_BY = frozenset(
    {"client_filter", "datetime_end", "send_interval_time_start", "send_interval_time_end"}
)
"""A change of these while a mailing runs plans its messages anew."""
RECORDED = frozenset({*NewMailing.__struct_fields__, "status"})
"""What the audit log tells of a mailing."""


async def create(engine: AsyncEngine, new: NewMailing, by: Actor) -> Mailing:
    """Create a mailing; one that is already due is under way at once."""
    async with engine.begin() as connection:
        if by.effect is not None:
            return await store.get(connection, by.effect["id"])
        clients_count = await audience.count(connection, new.client_filter)
        values = msgspec.structs.asdict(new)
        mailing_id = await store.add(connection, values, clients_count)
        await tell(connection)
        await _record(connection, by, "mailing_created", mailing_id, after=values)
        created = await store.get(connection, mailing_id)
    log.info("mailing_created", mailing_id=mailing_id, clients=clients_count)
    return created


async def _record(  # noqa: PLR0913  # what an audit log tells
    connection: AsyncConnection,
    by: Actor,
    action: str,
    mailing_id: int,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write into the audit log what was done."""
    target = audit.Target("mailing", mailing_id)
    was, is_now = _told(before or {}), _told(after or {})
    await audit.record(connection, by, action, target, before=was or None, after=is_now or None)


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in values.keys() & RECORDED}


async def change(
    engine: AsyncEngine, mailing_id: int, changes: MailingChange, by: Actor
) -> Mailing:
    """Change a mailing: before its start all of it, while it runs what was not sent yet.

    Raises `MailingNotFoundError`, `MailingEndedError`, `MailingStartedError`, and `InvalidError`
    when the change does not fit the rest of the mailing.
    """
    async with engine.begin() as connection:
        mailing = await store.get(connection, mailing_id, lock=True)
        has_begun = await store.has_begun(connection, mailing_id)
        given = changes.given().items()
        values = {name: value for name, value in given if value != getattr(mailing, name)}
        _refuse_too_late(mailing, values, has_begun=has_begun)
        _refuse_misfit(mailing, values)
        if "client_filter" in values:
            clients_count = await audience.count(connection, values["client_filter"])
            # messages that exist stay in the audience
            values["clients_count"] = max(clients_count, mailing.created_messages)
        if has_begun and values.keys() & PLANNED_BY:
            values |= {"replan_cursor": 0, "replanning": True, "replan_stop": None}
            if "client_filter" in values:
                values |= {"filter_changed": True} | audience.taken_now()
        await store.change(connection, mailing_id, values)
        await tell(connection)
        if was := {name: getattr(mailing, name) for name, _ in given if name in values}:
            await _record(connection, by, "mailing_changed", mailing_id, before=was, after=values)
        changed = await store.get(connection, mailing_id)
    fields = sorted(values.keys() & NewMailing.__struct_fields__)
    log.info("mailing_changed", mailing_id=mailing_id, fields=fields)
    return changed


def _refuse_too_late(mailing: Mailing, values: dict[str, Any], *, has_begun: bool) -> None:
    if mailing.status in ENDED or mailing.datetime_end <= database_clock.now():
        raise MailingEndedError
    has_started = has_begun or mailing.datetime_start <= database_clock.now()
    start = values.get("datetime_start", mailing.datetime_start)
    if has_started and start != mailing.datetime_start:
        raise MailingStartedError


def _refuse_misfit(mailing: Mailing, values: dict[str, Any]) -> None:
    """Refuse a change that is right in itself but not together with what stays."""
    whole = {name: getattr(mailing, name) for name in NewMailing.__struct_fields__} | values
    errors = [
        *MailingChange.broken_rules(whole, database_clock.now()),
        *half_window(whole),
    ]
    if errors:
        raise InvalidError(errors)


async def delete(engine: AsyncEngine, mailing_id: int, by: Actor) -> None:
    """Delete a mailing; returns when no worker sends for it any more.

    Raises `MailingNotFoundError`, and `StillStoppingError` when a worker does not stop; who asks
    again waits again.
    """
    try:
        async with engine.begin() as connection:
            mailing = await store.get(connection, mailing_id, lock=True)
            await store.mark_deleted(connection, mailing_id)
            await tell(connection)
            was = msgspec.structs.asdict(mailing)
            await _record(connection, by, "mailing_deleted", mailing_id, before=was)
        log.info("mailing_deleted", mailing_id=mailing_id)
    except MailingNotFoundError:
        await _until_stopped(engine, mailing_id)
        raise
    await _until_stopped(engine, mailing_id)


async def pause(engine: AsyncEngine, mailing_id: int, by: Actor) -> Mailing:
    """Pause a mailing; returns when no worker begins to send for it any more.

    Raises `MailingNotFoundError`, `MailingEndedError`, `MailingPausedError`, and
    `StillStoppingError` when a worker does not stop.
    """
    if by.effect is None:
        async with engine.begin() as connection:
            mailing = await _get_live(connection, mailing_id)
            if mailing.status == "paused":
                raise MailingPausedError
            values = {"status": "paused"}
            await store.change(connection, mailing_id, values)
            await tell(connection)
            was = {"status": mailing.status}
            await _record(connection, by, "mailing_paused", mailing_id, before=was, after=values)
        log.info("mailing_paused", mailing_id=mailing_id)
    return await _stopped(engine, mailing_id)


async def resume(engine: AsyncEngine, mailing_id: int, by: Actor) -> Mailing:
    """Let a paused mailing go on, or wait for its start.

    Raises `MailingNotFoundError`, `MailingEndedError` and `MailingNotPausedError`.
    """
    async with engine.begin() as connection:
        if by.effect is not None:
            return await store.get(connection, mailing_id)
        mailing = await _get_live(connection, mailing_id)
        if mailing.status != "paused":
            raise MailingNotPausedError
        has_begun = await store.has_begun(connection, mailing_id)
        status = "running" if has_begun else "scheduled"
        await store.change(connection, mailing_id, {"status": status})
        await tell(connection)
        was, values = {"status": mailing.status}, {"status": status}
        await _record(connection, by, "mailing_resumed", mailing_id, before=was, after=values)
        resumed = await store.get(connection, mailing_id)
    log.info("mailing_resumed", mailing_id=mailing_id)
    return resumed


async def cancel(engine: AsyncEngine, mailing_id: int, by: Actor) -> Mailing:
    """Cancel a mailing for good: what has not been sent will not be.

    Its messages become cancelled in chunks, soon after. Raises `MailingNotFoundError`,
    `MailingEndedError`, and `StillStoppingError` when a worker does not stop.
    """
    if by.effect is None:
        async with engine.begin() as connection:
            mailing = await _get_live(connection, mailing_id)
            has_begun = await store.has_begun(connection, mailing_id)
            values = {"status": "cancelled", "retry_before": None, "is_settled": not has_begun}
            await store.change(connection, mailing_id, values)
            await tell(connection)
            was = {"status": mailing.status}
            await _record(connection, by, "mailing_cancelled", mailing_id, before=was, after=values)
        log.info("mailing_cancelled", mailing_id=mailing_id)
    return await _stopped(engine, mailing_id)


async def retry(engine: AsyncEngine, mailing_id: int, by: Actor) -> Mailing:
    """Send again what is undelivered or unknown, also of a mailing that is through with all.

    The messages are scheduled in chunks, soon after. Raises `MailingNotFoundError`,
    `MailingEndedError` and `NothingToRetryError`.
    """
    async with engine.begin() as connection:
        if by.effect is not None:
            return await store.get(connection, mailing_id)
        mailing = await store.get(connection, mailing_id, lock=True)
        if mailing.status == "cancelled" or mailing.datetime_end <= database_clock.now():
            raise MailingEndedError
        if mailing.undelivered_messages + mailing.unknown_messages == 0:
            raise NothingToRetryError
        values = {
            "retry_before": func.clock_timestamp(),
            "retry_cursor": 0,
            "is_settled": False,
        }
        was = {}
        if mailing.status == "finished":
            was, values["status"] = {"status": mailing.status}, "running"
        await store.change(connection, mailing_id, values)
        await tell(connection)
        await _record(connection, by, "mailing_retried", mailing_id, before=was, after=values)
        retried = await store.get(connection, mailing_id)
    log.info("mailing_retried", mailing_id=mailing_id)
    return retried


async def _get_live(connection: AsyncConnection, mailing_id: int) -> Mailing:
    """Return a mailing that has not ended, locked."""
    mailing = await store.get(connection, mailing_id, lock=True)
    if mailing.status in ENDED or mailing.datetime_end <= database_clock.now():
        raise MailingEndedError
    return mailing


PATIENCE = 30.0
"""Seconds to wait for every worker to stop sending."""
PAUSE = 0.02
"""Seconds between looks whether they have, with no connection held."""
# Skip the wait when the mailing has not started, or was resumed meanwhile.
SENDS_NOTHING = text("""
    SELECT NOT EXISTS (SELECT FROM mailing WHERE id = :mailing_id AND audience_until IS NOT NULL)
        OR EXISTS (
            SELECT FROM mailing
            WHERE id = :mailing_id AND status = 'running' AND deleted_at IS NULL)""")


async def _stopped(engine: AsyncEngine, mailing_id: int) -> Mailing:
    """Wait until no worker sends for a mailing, and return it."""
    await _until_stopped(engine, mailing_id)
    async with engine.connect() as connection:
        return await store.get(connection, mailing_id)


async def _until_stopped(engine: AsyncEngine, mailing_id: int) -> None:
    """Wait until every worker has read the change that stops a mailing; it is committed."""
    async with engine.begin() as connection:
        if await _sends_nothing(connection, mailing_id):
            return
        number = await stopping.draw(connection)
    try:
        async with asyncio.timeout(PATIENCE):
            while not await _is_stopped(engine, mailing_id, number):  # noqa: ASYNC110  # others end, elsewhere
                await asyncio.sleep(PAUSE)
    except TimeoutError as error:
        raise StillStoppingError from error


async def _is_stopped(engine: AsyncEngine, mailing_id: int, number: int) -> bool:
    async with engine.connect() as connection:
        return await stopping.is_applied(connection, number) or await _sends_nothing(
            connection, mailing_id
        )


async def _sends_nothing(connection: AsyncConnection, mailing_id: int) -> bool:
    return bool((await connection.execute(SENDS_NOTHING, {"mailing_id": mailing_id})).scalar_one())
