"""Read the running and paused mailings, and later only those that have changed.

`dispatch/running_mailings.py` keeps these mailings in memory. It first reads all of them together
with a PostgreSQL snapshot. With that snapshot it can ask later for the rows that have changed.
"""

from datetime import datetime

import asyncpg

from mailer.db.tables.mailing import OPEN_MAILING
from mailer.gateway.sms_parts import count_parts
from mailer.mailing.field_types import PRIORITY_WEIGHTS
from mailer.mailing.model import RunningMailing
from mailer.mailing.window import SendingWindow

MAILINGS_PER_READ = 1_000
"""Mailings that one call of `read_active` returns at most."""

# `is_active` is true of a mailing that may still have open messages and was not cancelled.
TRACKED_COLUMNS = f"""
    id, text, text_version, sender, datetime_end, on_unknown, priority, rate,
    send_interval_time_start, send_interval_time_end,
    purpose = 'marketing' AS respects_opt_outs,
    status = 'running' AND NOT is_replanning AND datetime_end > clock_timestamp() AS may_send,
    status IN ('running', 'paused') AND {OPEN_MAILING} AS is_active"""
ACTIVE_MAILINGS = f"""
    SELECT {TRACKED_COLUMNS} FROM mailing
    WHERE {OPEN_MAILING} AND status IN ('running', 'paused') AND id > $1
    ORDER BY id LIMIT $2"""  # noqa: S608  # no user input
DATABASE_NOW = "SELECT clock_timestamp(), pg_current_snapshot()::text"

# A trigger writes the id of the changing transaction into `changed_by`. A change is newer than the
# snapshot $1 if its transaction
# - was in progress at the snapshot (`pg_snapshot_xip`), or
# - has started since (its id is at least `pg_snapshot_xmax`).
# A row restored from another server's dump may contain the id of a transaction that has not started
# on this server yet. The last condition excludes it.
CHANGED_MAILINGS = f"""
    SELECT {TRACKED_COLUMNS} FROM mailing
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
    """Return the mailings that have changed since a snapshot, as `database_now` returned it."""
    return _by_id(await connection.fetch(CHANGED_MAILINGS, since))


def _by_id(rows: list[asyncpg.Record]) -> MailingsById:
    return {row["id"]: _to_running_mailing(row) if row["is_active"] else None for row in rows}


def _to_running_mailing(row: asyncpg.Record) -> RunningMailing:
    opens, closes = row["send_interval_time_start"], row["send_interval_time_end"]
    return RunningMailing(
        id=row["id"],
        text=row["text"],
        text_version=row["text_version"],
        datetime_end=row["datetime_end"],
        window=None if opens is None else SendingWindow(opens, closes),
        on_unknown=row["on_unknown"],
        sender=row["sender"],
        respects_opt_outs=row["respects_opt_outs"],
        weight=PRIORITY_WEIGHTS[row["priority"]],
        rate=row["rate"],
        parts=count_parts(row["text"]).parts,
        may_send=row["may_send"],
    )
