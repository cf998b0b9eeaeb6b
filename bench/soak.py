"""Whether every message is accounted for while everything breaks, again and again.

A PostgreSQL that is restarted, crashed and kept down, a gateway that is slow, wrong, frozen and
away, two mailers that are killed, frozen and started again, a clock of theirs that is set, and
strangers who send hostile files and heads, while mailings of every kind are made, changed, paused,
cancelled, retried and deleted.
Then the gateway's own log is compared with the ledgers and the messages row by row, and with every
state that they went through. Limit: no row that the contract does not explain. Takes the minutes
asked for and some seconds more.
"""

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

import harness
from mailer.db.engine import create_engine, is_away
from mailer.db.migrate import migrate
from soaking.evidence import Audit, Evidence
from soaking.final import check_final, count_unsettled, read_final, tell_figures
from soaking.hostile import trouble_heads, trouble_imports
from soaking.journal import Draw, Journal
from soaking.noise import measured_noise
from soaking.operator import Operator, add_clients
from soaking.outcomes import check_outcomes
from soaking.postgres import Postgres
from soaking.processes import Sandbox
from soaking.record import follow, read_record
from soaking.requests import check_requests
from soaking.silence import check_silence
from soaking.troubles import Fleet, fleet_on, trouble_all, trouble_database, trouble_gateway
from soaking.wall_clock import trouble_clock

LAST = timedelta(seconds=5)
"""How long the last mailings go on when nothing is broken any more."""
DRAIN = 45.0
"""Seconds after the last end for leases to run out, and for everything to end."""
PAUSE = 0.5
PROGRESS = 10.0
"""Seconds between the lines that tell how it goes."""
TOTALS = """
    SELECT count(*) AS mailings, coalesce(sum(scheduled + sending), 0) AS waiting,
        coalesce(sum(delivered), 0) AS delivered,
        coalesce(sum(undelivered + "unknown" + cancelled), 0) AS others FROM ledger"""


async def prepare(database_url: str) -> None:
    """Make the tables, the clients, and what follows every change."""
    engine = create_engine(database_url)
    await migrate(engine)
    await engine.dispose()
    await follow(database_url)
    await add_clients(database_url)


async def run(  # noqa: PLR0913, PLR0917  # one for each part
    database: Postgres, sandbox: Sandbox, fleet: Fleet, journal: Journal, draw: Draw, minutes: float
) -> int:
    """Break things while mailings go out; return how many mailings are known to be made."""
    ends_at = datetime.now(UTC) + timedelta(minutes=minutes)
    operator = Operator(fleet, journal, draw.part("operator"), ends_at)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fleet.keep("first"))
        tasks.create_task(fleet.keep("second"))
        tasks.create_task(trouble_all(fleet, journal, draw.part("all")))
        tasks.create_task(trouble_database(database, journal, draw.part("database")))
        tasks.create_task(trouble_gateway(sandbox, journal, draw.part("gateway")))
        tasks.create_task(trouble_clock(fleet.clock, journal, draw.part("clock")))
        tasks.create_task(trouble_imports(fleet, journal, draw.part("imports")))
        tasks.create_task(trouble_heads(fleet, journal, draw.part("heads")))
        tasks.create_task(operator.run())
        tasks.create_task(tell_progress(database.url(), journal))
        await asyncio.sleep((ends_at - LAST - datetime.now(UTC)).total_seconds())
        journal.over.set()
    await asyncio.sleep((ends_at - datetime.now(UTC)).total_seconds())
    return len(operator.made)


async def tell_progress(database_url: str, journal: Journal) -> None:
    """Print every few seconds how it goes."""
    began = time.monotonic()
    while await journal.rest(PROGRESS):
        try:
            connection = await asyncpg.connect(database_url, timeout=1)
            [totals] = await connection.fetch(TOTALS)
            await connection.close()
            figures = ", ".join(f"{name} {count:,}" for name, count in totals.items())
        except Exception as error:  # a connection that is cut early raises many kinds
            if not is_away(error):
                raise
            figures = "the database is away"
        elapsed = time.monotonic() - began
        print(f"{elapsed:4.0f} s  {figures}; {journal.counts()}", flush=True)


async def drain(database_url: str) -> None:
    """Wait until every mailing and every message has ended, but not for ever."""
    connection = await asyncpg.connect(database_url)
    began = time.monotonic()
    while (left := await count_unsettled(connection)) and time.monotonic() < began + DRAIN:  # noqa: ASYNC110  # others end it
        await asyncio.sleep(PAUSE)
    await connection.close()
    took = f"{time.monotonic() - began:.1f} s after the last end"
    print(f"{took} everything has ended" if not left else f"{took} {left:,} rows have not ended")


async def soak(database: Postgres, folder: Path, minutes: float, seed: int) -> int:
    """Run everything, then compare; return the exit status."""
    journal, draw = Journal(), Draw(str(seed))
    url = database.url()
    await prepare(url)
    async with (
        measured_noise() as noise,
        Sandbox(folder, seed) as sandbox,
        fleet_on(database, sandbox.url, folder, journal, draw.part("fleet")) as fleet,
    ):
        made = await run(database, sandbox, fleet, journal, draw, minutes)
        await drain(url)
        await fleet.close(signal.SIGTERM)
    connection = await asyncpg.connect(url)
    record = await read_record(connection, sandbox.logs, journal)
    final = await read_final(connection, url)
    await connection.close()
    tell_figures(journal, record, made, minutes)
    verdict = harness.Verdict()
    audit, evidence = Audit(verdict), Evidence(record, journal, final.clients)
    check_requests(audit, evidence)
    check_outcomes(audit, evidence)
    check_final(audit, evidence, final, noise.most)
    check_silence(audit, evidence)
    return verdict.status


async def main(minutes: float, seed: int) -> int:
    """Run the soak on a server of its own and clean up whatever happens."""
    this = asyncio.current_task()
    if this is not None:  # SIGTERM ends it as Ctrl-C does: what it started is stopped
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        async with Postgres(Path(name)) as database:
            return await soak(database, Path(name), minutes, seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))  # noqa: S311  # not for secrets
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(asyncio.run(main(given.minutes, given.seed)))
    sys.exit(130)
