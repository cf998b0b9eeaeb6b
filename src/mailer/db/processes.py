"""Which processes are at work, by what PostgreSQL knows of its sessions.

Each process that dispatches keeps one session under a name of its own and asks something in it
every second; so there is nothing to write down, and nothing left of a process that is gone.
"""

import os
import socket
from datetime import datetime, timedelta

import msgspec
from sqlalchemy import Interval, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.clock import database_clock

LONGEST = 63
"""Bytes of a session's name that PostgreSQL keeps; what is not ASCII it would replace."""
SILENCE = timedelta(seconds=15)
"""Without a question in its session: then a process is cut off, stands still or is gone."""


class Process(msgspec.Struct, frozen=True):
    """A process that dispatches."""

    host: str
    """Its machine's name, cut if it is very long."""
    pid: int
    since: datetime
    """When it started, by the database's clock, to the second."""


def session_name(host: str, pid: int, since: datetime) -> str:
    """Return the name of a process's session.

    With the start in it, for in containers every process may have the same host and number.
    """
    end = f":{pid}@{int(since.timestamp())}"
    plain = host.encode("ascii", "replace").decode()
    return f"mailer {plain[: LONGEST - len('mailer ') - len(end)]}{end}"


def own_session_name() -> str:
    """Return the name for this process's session; to be asked once, at its start."""
    return session_name(socket.gethostname(), os.getpid(), database_clock.now())


# A session whose machine or network is gone stays for hours: it asks nothing any more. One that was
# lost and opened anew may be there twice for a while, under one name.
AT_WORK = text(r"""
    SELECT DISTINCT found[1], found[2]::int, to_timestamp(found[3]::bigint) AS since
    FROM pg_stat_activity
        CROSS JOIN regexp_match(application_name, '^mailer (.*):([0-9]{1,9})@([0-9]{1,11})$')
            AS found
    WHERE found IS NOT NULL AND datname = current_database() AND usename = current_user
        AND greatest(query_start, state_change) > clock_timestamp() - :silence
    ORDER BY since DESC, 1, 2""").bindparams(bindparam("silence", type_=Interval))


async def at_work(connection: AsyncConnection, silence: timedelta = SILENCE) -> list[Process]:
    """Return the processes that dispatch over this database, the newest first.

    One that stops is among them until its last message is written; one that asks nothing for as
    long as `silence` is not.
    """
    found = await connection.execute(AT_WORK, {"silence": silence})
    return [Process(*row) for row in found]
