"""Random faults of PostgreSQL, of the gateways and of mailer's workers.

Each `inject_...` function runs until the soak is ending, and records each fault in the journal.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

import harness
from soaking.journal import Journal, RandomSource
from soaking.postgres import Postgres
from soaking.processes import Worker
from soaking.sandbox import Sandbox
from soaking.wall_clock import WallClock

MAX_WORKERS = 2_000
"""Database roles, one for each worker that is started; enough for more than a day. The role shows
which worker made a change."""
STOP_SHARE = 0.25
"""Share of the workers that end by SIGTERM; the others end by SIGKILL."""
EARLY_SHARE = 0.1
"""Share of the workers that may end before they serve."""
FREEZE_SHARE = 0.4
"""Share of the workers that are frozen for some seconds."""
CREATE_ROLE = "CREATE ROLE worker_{} SUPERUSER LOGIN"
CLOSE_CONNECTIONS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"""


class Fleet:
    """The workers on the database; each is ended and replaced by a new one again and again.

    A blackout is a time in which all of them are killed and none is started.
    """

    def __init__(
        self,
        database: Postgres,
        settings: dict[str, object],
        folder: Path,
        journal: Journal,
        rng: RandomSource,
    ) -> None:
        self._database = database
        self._settings = settings
        self._folder = folder
        self._journal = journal
        self._rng = rng
        self.clock = WallClock(folder)
        self._worker_numbers = count(1)
        self._may_start = asyncio.Event()
        self._may_start.set()
        self._is_blackout = asyncio.Event()
        self.alive: list[Worker] = []
        """Workers that have been started and not ended; they may not serve yet."""

    @property
    def addresses(self) -> list[str]:
        """The addresses where the API is served at this moment."""
        return [worker.address for worker in self.alive if worker.address is not None]

    async def keep_restarting(self, name: str) -> None:
        """Start a worker, end it, and start the next, until the soak is ending.

        The last worker is left running, so that it can send the remaining messages.
        `name` identifies this series of workers; it determines the random choices.
        """
        rng = self._rng.substream(name)
        while not self._journal.ending.is_set():
            await self._may_start.wait()
            worker = await self._start()
            if rng.random() > EARLY_SHARE:
                await self._wait(worker, worker.is_serving.wait())
            if rng.random() < FREEZE_SHARE:
                await self._wait(worker, asyncio.sleep(rng.uniform(1, 8)))
                # shorter than the lease, or longer
                await self._freeze(worker, rng.choice((rng.uniform(2, 5), rng.uniform(8, 12))))
            await self._wait(worker, asyncio.sleep(rng.uniform(2, 25)))
            if worker.status is not None:
                self._journal.add_violation(f"{worker.name} ended unexpectedly: {worker.status}")
            elif self._journal.ending.is_set():
                return
            await self._end(worker, signal.SIGTERM if rng.random() < STOP_SHARE else signal.SIGKILL)
            await self._journal.sleep(rng.choice((0, 0, 1, 3)))  # seconds until the next one starts
        await self._start()

    async def black_out(self, seconds: float) -> None:
        """Kill all workers at once, and start none for `seconds`."""
        with self._journal.fault("no worker"):
            self._may_start.clear()
            self._is_blackout.set()
            await self._journal.sleep(seconds)
            self._is_blackout.clear()
            self._may_start.set()

    def reload(self) -> None:
        """Let all workers read the file of gateways again."""
        for worker in self.alive:
            worker.reload()

    async def close(self, end_signal: signal.Signals) -> None:
        """End all workers with a signal."""
        for worker in list(self.alive):
            await self._end(worker, end_signal)

    async def _start(self) -> Worker:
        name = f"worker_{next(self._worker_numbers)}"
        settings = self._settings | {"database_url": self._database.url(name)}
        worker = Worker(name, settings, self._journal, self.clock)
        self.alive.append(worker)
        await worker.start(self._folder)
        return worker

    async def _end(self, worker: Worker, end_signal: signal.Signals) -> None:
        """End a worker with a signal; in a blackout always with SIGKILL."""
        if self._is_blackout.is_set():
            end_signal = signal.SIGKILL
        how = "killed" if end_signal == signal.SIGKILL else "stopped"
        with self._journal.fault(f"mailer {how}", worker.name):
            await worker.end(end_signal)
        self.alive.remove(worker)

    async def _freeze(self, worker: Worker, seconds: float) -> None:
        """Freeze a worker by SIGSTOP for some seconds.

        If that is longer than its leases, it loses them without noticing.
        """
        if worker.status is None:
            with self._journal.fault("mailer frozen", worker.name):
                worker.signal(signal.SIGSTOP)
                await self._wait(worker, asyncio.sleep(seconds))
                worker.signal(signal.SIGCONT)

    async def _wait(self, worker: Worker, event: Coroutine[Any, Any, object]) -> None:
        """Wait for `event`, a blackout, the end of the soak or the end of the worker.

        Returns when the first of these has happened, or after a timeout.
        """
        events = (event, self._is_blackout.wait(), self._journal.ending.wait(), worker.ended())
        tasks = [asyncio.create_task(each) for each in events]
        timeout = harness.PROCESS_TIMEOUT
        try:
            await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()


@asynccontextmanager
async def fleet_on(
    database: Postgres,
    settings: dict[str, object],
    folder: Path,
    journal: Journal,
    rng: RandomSource,
) -> AsyncIterator[Fleet]:
    """Yield a fleet; workers that still run at the end are killed.

    `settings` are settings of the workers that differ between two soaks.
    """
    connection = await asyncpg.connect(database.url())
    await connection.execute(";".join(CREATE_ROLE.format(n) for n in range(1, MAX_WORKERS)))
    await connection.close()
    fleet = Fleet(database, settings, folder, journal, rng)
    try:
        yield fleet
    finally:
        await fleet.close(signal.SIGKILL)


async def inject_database_faults(database: Postgres, journal: Journal, rng: RandomSource) -> None:
    """Restart PostgreSQL, crash it, keep it down, or close all its connections, at random."""
    while await journal.sleep(rng.uniform(6, 20)):
        stop = rng.choice((signal.SIGINT, signal.SIGQUIT))
        how = "crashed" if stop == signal.SIGQUIT else "restarted"
        [fault] = rng.choices(("close", "restart", "outage"), weights=(3, 4, 1))
        match fault:
            case "close":
                with journal.fault("connections closed"):
                    await _close_connections(database)
            case "restart":
                with journal.fault(f"PostgreSQL {how}"):
                    await database.stop(stop)
                    await database.start()
            case _:
                with journal.fault(f"PostgreSQL down, {how}"):
                    await database.stop(stop)
                    await journal.sleep(rng.uniform(5, 20))
                    await database.start()


async def _close_connections(database: Postgres) -> None:
    """Let PostgreSQL close the connections of all clients."""
    connection = await asyncpg.connect(database.url())
    await connection.execute(CLOSE_CONNECTIONS)
    await connection.close()


async def inject_gateway_faults(sandbox: Sandbox, journal: Journal, rng: RandomSource) -> None:
    """Stop a gateway, freeze it, or let its account run out of credit, at random intervals.

    After a stop it refuses connections, and may be slow or respond wrongly when it is back. While
    it is frozen, requests wait.
    """
    while await journal.sleep(rng.uniform(10, 30)):
        match rng.choice(("down", "frozen", "without credit")):
            case "down":
                with journal.fault("gateway down", gateway=sandbox.name):
                    await sandbox.stop()
                    await journal.sleep(rng.uniform(0, 6))
                    await sandbox.start()
            case "frozen":
                with journal.fault("gateway frozen", gateway=sandbox.name):
                    sandbox.signal(signal.SIGSTOP)
                    await journal.sleep(rng.uniform(0.5, 5))
                    sandbox.signal(signal.SIGCONT)
            case _:
                with journal.fault("gateway without credit", gateway=sandbox.name):
                    sandbox.signal(signal.SIGUSR1)
                    await journal.sleep(rng.uniform(0.5, 6))
                    sandbox.signal(signal.SIGUSR2)


async def inject_blackouts(fleet: Fleet, journal: Journal, rng: RandomSource) -> None:
    """Leave no worker running for some seconds, at random intervals."""
    while await journal.sleep(rng.uniform(20, 50)):
        await fleet.black_out(rng.uniform(2, 8))
