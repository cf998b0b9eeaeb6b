"""The soak: check that mailer keeps its guarantees while everything around it fails repeatedly.

The guarantees are those of `docs/reliability.md`. Random mailings are created, changed, paused,
cancelled, retried and deleted. Meanwhile these faults are injected at random:

- PostgreSQL is restarted, crashed and kept down, and its connections are closed;
- each of three gateways of different kinds responds slowly or wrongly, is frozen, down, without
  credit, and paused; mailings have a gateway of their own;
- the file of gateways is changed: a gateway is removed and added again, orders are swapped;
- two workers are killed, frozen and started again, and their wall clock is set;
- hostile files and request headers are sent to the API.

Two of the gateways send receipts: late, early, twice, in disorder, contradictory, and some never.
Some clients reply with a stop word, and later with a start word.

At the end, checks compare the gateways' own logs with the counts, with the final state of every
message, and with every state that it had. Limit: no violation of a guarantee. Takes `--minutes` and
up to two minutes more. Needs Debian's `faketime`.

The parts, in `soaking/`: the *journal* contains what the soak did and what mailer logged. The
*record* contains every state of every message and mailing, and all requests that the gateways
received. The *evidence* answers questions about both, such as "was this worker frozen then?".
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
from mailer.db.engine import create_engine, is_unavailable
from mailer.db.migrate import migrate
from soaking.contradictions import inject_contradictions
from soaking.evidence import CheckReport, Evidence
from soaking.faults import (
    Fleet,
    fleet_on,
    inject_blackouts,
    inject_database_faults,
    inject_gateway_faults,
)
from soaking.final import check_final, count_unfinished, print_figures, read_final
from soaking.forwarder import Forwarder
from soaking.gateway_checks import check_gateways
from soaking.hostile import send_hostile_headers, send_hostile_imports
from soaking.journal import RECEIPT_WAIT, Journal, RandomSource
from soaking.noise import measured_noise
from soaking.operator import Operator, create_clients
from soaking.opt_out_checks import check_opt_outs
from soaking.opt_outs import inject_replies
from soaking.outcomes import check_outcomes
from soaking.postgres import Postgres
from soaking.receipt_checks import check_receipts
from soaking.record import read_record, start_recording
from soaking.requests import check_requests
from soaking.routing import GatewayFile, inject_configurations, inject_pauses
from soaking.sandbox import Sandbox, free_ports, sandboxes
from soaking.silence import check_silence
from soaking.stalls import watch_stalls
from soaking.wall_clock import inject_clock_steps

FINAL_SECONDS = timedelta(seconds=5)
"""Time between the last fault and the end of the last mailings."""
DRAIN_TIMEOUT = 45.0 + RECEIPT_WAIT
"""Seconds after the end of the last mailings in which leases expire and all messages must end."""
DRAIN_INTERVAL = 0.5
"""Seconds between two checks whether everything has ended."""
PROGRESS_INTERVAL = 10.0
"""Seconds between the lines of progress."""
SELECT_TOTALS = """
    SELECT count(*) AS mailings, coalesce(sum(scheduled + sending), 0) AS waiting,
        coalesce(sum(sent), 0) AS sent, coalesce(sum(delivered), 0) AS delivered,
        coalesce(sum(undelivered + "unknown" + cancelled), 0) AS others FROM mailing_counts"""


async def prepare(database_url: str) -> None:
    """Create the tables, the clients, and the triggers that record every change."""
    engine = create_engine(database_url)
    await migrate(engine)
    await engine.dispose()
    await start_recording(database_url)
    await create_clients(database_url)


async def run(  # noqa: PLR0913, PLR0917  # one parameter for each part of the system
    database: Postgres,
    gateways: list[Sandbox],
    file: GatewayFile,
    fleet: Fleet,
    forwarder: Forwarder,
    journal: Journal,
    rng: RandomSource,
    minutes: float,
) -> int:
    """Send mailings and inject faults for `minutes`.

    Return the number of mailings whose creation the API confirmed.
    """
    ends_at = datetime.now(UTC) + timedelta(minutes=minutes)
    operator = Operator(fleet, journal, rng.substream("operator"), ends_at)
    async with asyncio.TaskGroup() as tasks:
        # two workers at a time
        tasks.create_task(fleet.keep_restarting("first"))
        tasks.create_task(fleet.keep_restarting("second"))
        tasks.create_task(inject_blackouts(fleet, journal, rng.substream("all")))
        tasks.create_task(inject_database_faults(database, journal, rng.substream("database")))
        for gateway in gateways:
            stream = rng.substream(f"gateway {gateway.name}")
            tasks.create_task(inject_gateway_faults(gateway, journal, stream))
        tasks.create_task(inject_configurations(file, fleet, journal, rng.substream("file")))
        tasks.create_task(inject_pauses(fleet, journal, rng.substream("pauses")))
        tasks.create_task(inject_clock_steps(fleet.clock, journal, rng.substream("clock")))
        tasks.create_task(send_hostile_imports(fleet, journal, rng.substream("imports")))
        tasks.create_task(send_hostile_headers(fleet, journal, rng.substream("heads")))
        replies = inject_replies(database.url(), forwarder, journal, rng.substream("replies"))
        tasks.create_task(replies)
        stream = rng.substream("contradictions")
        tasks.create_task(inject_contradictions(database.url(), forwarder, journal, stream))
        tasks.create_task(operator.run())
        tasks.create_task(print_progress(database.url(), journal))
        await asyncio.sleep((ends_at - FINAL_SECONDS - datetime.now(UTC)).total_seconds())
        journal.ending.set()
    await asyncio.sleep((ends_at - datetime.now(UTC)).total_seconds())
    return len(operator.created_ids)


async def print_progress(database_url: str, journal: Journal) -> None:
    """Print the counts of messages and of faults every few seconds."""
    began = time.monotonic()
    while await journal.sleep(PROGRESS_INTERVAL):
        try:
            connection = await asyncpg.connect(database_url, timeout=1)
            [totals] = await connection.fetch(SELECT_TOTALS)
            await connection.close()
            figures = ", ".join(f"{name} {count:,}" for name, count in totals.items())
        except Exception as error:  # a connection that is lost early raises many kinds of errors
            if not is_unavailable(error):
                raise
            figures = "the database is unavailable"
        elapsed = time.monotonic() - began
        print(f"{elapsed:4.0f} s  {figures}; {journal.fault_counts()}", flush=True)


async def drain(database_url: str) -> None:
    """Wait until every mailing and message has ended, for at most `DRAIN_TIMEOUT` seconds."""
    connection = await asyncpg.connect(database_url)
    began = time.monotonic()
    deadline = began + DRAIN_TIMEOUT
    while (unfinished := await count_unfinished(connection)) and time.monotonic() < deadline:  # noqa: ASYNC110  # the workers end it
        await asyncio.sleep(DRAIN_INTERVAL)
    await connection.close()
    elapsed = f"{time.monotonic() - began:.1f} s after the end of the last mailings"
    result = f"{unfinished:,} rows have not ended" if unfinished else "everything has ended"
    print(f"{elapsed} {result}")


async def soak(database: Postgres, folder: Path, minutes: float, seed: int) -> int:
    """Run mailings and faults for `minutes`, then check everything; return the exit status."""
    journal, rng = Journal(), RandomSource(str(seed))
    url, file_path = database.url(), folder / "gateways.toml"
    await prepare(url)
    async with (
        measured_noise() as noise,
        sandboxes(folder, rng.substream("gateways")) as gateways,
        Forwarder(next(free_ports()), rng.substream("forwarder")) as forwarder,
        fleet_on(
            database,
            {"gateways": file_path, "public_url": forwarder.url},
            folder,
            journal,
            rng.substream("fleet"),
        ) as fleet,
    ):
        forwarder.addresses = lambda: fleet.addresses
        file = GatewayFile(file_path, gateways, journal)
        stalls = asyncio.create_task(watch_stalls(url, journal))
        created_count = await run(database, gateways, file, fleet, forwarder, journal, rng, minutes)
        await drain(url)
        stalls.cancel()
        await fleet.close(signal.SIGTERM)
    connection = await asyncpg.connect(url)
    logs = [log for gateway in gateways for log in gateway.logs]
    record = await read_record(connection, logs, journal)
    final = await read_final(connection, url)
    await connection.close()
    print_figures(journal, record, created_count, minutes)
    verdict = harness.Verdict()
    report, evidence = CheckReport(verdict), Evidence(record, journal, final.clients)
    check_requests(report, evidence)
    check_outcomes(report, evidence)
    check_gateways(report, evidence)
    check_receipts(report, evidence, final)
    check_opt_outs(report, evidence, final)
    check_final(report, evidence, final, noise.max_excess)
    check_silence(report, evidence)
    return verdict.status


async def main(minutes: float, seed: int) -> int:
    """Run the soak on its own PostgreSQL server, and clean up in any case."""
    # Workers reload on SIGHUP. They inherit an ignored signal, as under nohup, but not a handler.
    signal.signal(signal.SIGHUP, lambda *_: None)
    task = asyncio.current_task()
    if task is not None:  # SIGTERM ends the soak as Ctrl-C does: all its processes are stopped
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        async with Postgres(Path(name)) as database:
            return await soak(database, Path(name), minutes, seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    seed_help = "repeats the random choices of a run that printed this seed"
    default_seed = random.randrange(10**6)  # noqa: S311  # not for secrets
    parser.add_argument("--seed", type=int, default=default_seed, help=seed_help)
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(asyncio.run(main(args.minutes, args.seed)))
    sys.exit(130)  # as a shell reports an end by Ctrl-C
