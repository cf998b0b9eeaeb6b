"""List of the active workers, read from PostgreSQL's view of its sessions.

Each worker that dispatches keeps one session open, and runs a query in it every second. The name
of the session (`application_name`) contains the worker's host, pid and start. So workers need no
table, and a worker that has ended leaves nothing behind.
"""

import os
import socket
from datetime import datetime, timedelta
from functools import cache

import msgspec
from sqlalchemy import Interval, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.clock import database_clock

MAX_SESSION_NAME_BYTES = 63
"""PostgreSQL shortens a session's name to this length; it also replaces non-ASCII characters."""
WORKER_TIMEOUT = timedelta(seconds=15)
"""Time without a query in its session after which a worker does not count as active: it hangs, has
ended, or lost its network."""


class Worker(msgspec.Struct, frozen=True):
    """A mailer process that dispatches messages of this database."""

    host: str
    """Name of its machine, shortened when it is very long."""
    pid: int
    since: datetime
    """When the worker started, by the database's clock, to the second."""

    @property
    def session_name(self) -> str:
        """The name of its session."""
        return session_name(self.host, self.pid, self.since)


def session_name(host: str, pid: int, since: datetime) -> str:
    """Return the name of a worker's session, such as `mailer web-1:42@1767225600`.

    The number after @ is the time of the start in seconds since 1970. It is there because workers
    in containers may all have the same host name and pid.
    """
    suffix = f":{pid}@{int(since.timestamp())}"
    ascii_host = host.encode("ascii", "replace").decode()
    return f"mailer {ascii_host[: MAX_SESSION_NAME_BYTES - len('mailer ') - len(suffix)]}{suffix}"


@cache
def own_session_name() -> str:
    """Return the name for the session of this process. The first call must be at the start."""
    return session_name(socket.gethostname(), os.getpid(), database_clock.now())


# Finds the sessions of workers by their names, and reads host, pid and start from the name. The
# time of the last query matters, because a session whose machine or network has failed stays open
# for hours. DISTINCT, because a worker that lost its session and opened another one may appear
# twice for a while, under one name.
SELECT_ACTIVE = text(r"""
    SELECT DISTINCT parts[1], parts[2]::int, to_timestamp(parts[3]::bigint) AS since
    FROM pg_stat_activity
        CROSS JOIN regexp_match(application_name, '^mailer (.*):([0-9]{1,9})@([0-9]{1,11})$')
            AS parts
    WHERE parts IS NOT NULL AND datname = current_database() AND usename = current_user
        AND greatest(query_start, state_change) > clock_timestamp() - :worker_timeout
    ORDER BY since DESC, 1, 2""").bindparams(bindparam("worker_timeout", type_=Interval))


async def active_workers(
    connection: AsyncConnection, worker_timeout: timedelta = WORKER_TIMEOUT
) -> list[Worker]:
    """Return the workers of this database, the newest first.

    A worker that is stopping is included until its last result is written. A worker whose session
    had no query within `worker_timeout` is not.
    """
    rows = await connection.execute(SELECT_ACTIVE, {"worker_timeout": worker_timeout})
    return [Worker(*row) for row in rows]
