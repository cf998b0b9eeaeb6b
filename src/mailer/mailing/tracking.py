"""Read the mailings that are running or paused, and those that have changed since the last read."""

from datetime import datetime

import asyncpg

from mailer.db.schema import OPEN_MAILING
from mailer.mailing.model import RunningMailing
from mailer.mailing.window import SendingWindow

MAILINGS_PER_READ = 1_000
"""Mailings that one statement reads. The next call reads the following ones."""

RUNNING_COLUMNS = f"""
    id, text, datetime_end, on_unknown, send_interval_time_start, send_interval_time_end,
    status = 'running' AND NOT is_replanning AND datetime_end > clock_timestamp(),
    status IN ('running', 'paused') AND {OPEN_MAILING}"""
ACTIVE_MAILINGS = f"""
    SELECT {RUNNING_COLUMNS} FROM mailing
    WHERE {OPEN_MAILING} AND status IN ('running', 'paused') AND id > $1
    ORDER BY id LIMIT $2"""  # noqa: S608  # no user input
DATABASE_NOW = "SELECT clock_timestamp(), pg_current_snapshot()::text"
# A trigger writes the id of the changing transaction into `changed_by`. A change that an earlier
# snapshot did not show was made by a transaction that was in progress then or has started since. A
# row restored from another server's dump may hold the id of a transaction that has not started on
# this server yet: the last condition excludes it.
CHANGED_MAILINGS = f"""
    SELECT {RUNNING_COLUMNS} FROM mailing
    WHERE changed_by = ANY (ARRAY(
            SELECT xid::text::bigint FROM pg_snapshot_xip($1::text::pg_snapshot) AS xid))
        OR (changed_by >= pg_snapshot_xmax($1::text::pg_snapshot)::text::bigint
            AND changed_by < pg_snapshot_xmax(pg_current_snapshot())::text::bigint)"""  # noqa: S608  # no user input

MailingsById = dict[int, RunningMailing | None]
"""Mailings by id; None for one that is not running or paused, or is closed or deleted."""


async def database_now(connection: asyncpg.Connection) -> tuple[datetime, str]:
    """Return the database's time, and a snapshot for `read_changed`."""
    [(moment, snapshot)] = await connection.fetch(DATABASE_NOW)
    return moment, snapshot


async def read_active(
    connection: asyncpg.Connection, after: int = 0, limit: int = MAILINGS_PER_READ
) -> MailingsById:
    """Return up to `limit` running or paused mailings with ids above `after`, by ascending id."""
    return _by_id(await connection.fetch(ACTIVE_MAILINGS, after, limit))


async def read_changed(connection: asyncpg.Connection, since: str) -> MailingsById:
    """Return the mailings that have changed since a snapshot."""
    return _by_id(await connection.fetch(CHANGED_MAILINGS, since))


def _by_id(rows: list[asyncpg.Record]) -> MailingsById:
    return {
        mailing_id: RunningMailing(
            mailing_id,
            message_text,
            end,
            opens and SendingWindow(opens, closes),
            on_unknown,
            may_send,
        )
        if is_active
        else None
        for (
            mailing_id,
            message_text,
            end,
            on_unknown,
            opens,
            closes,
            may_send,
            is_active,
        ) in rows
    }
