"""What is done to the system: PostgreSQL, the gateway and mailer broken at random."""

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

import harness
from soaking.journal import Draw, Journal
from soaking.postgres import Postgres
from soaking.processes import Life, Sandbox
from soaking.wall_clock import WallClock

LIVES = 2_000
"""Runs of mailer that have a role each; more than a day's."""
STOPPED, STILLBORN, FROZEN = 0.25, 0.1, 0.4
"""Parts of the runs of mailer that end politely, before they serve, and after they were frozen."""
DOWN = 0.5
"""Part of the gateway's troubles in which it is down; it is frozen in the others."""
ADD_ROLE = "CREATE ROLE life_{} SUPERUSER LOGIN"
CUT_ALL = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"""


class Fleet:
    """Processes of mailer on one database, each killed and started again and again."""

    def __init__(
        self, database: Postgres, gateway_url: str, folder: Path, journal: Journal, draw: Draw
    ) -> None:
        self._database = database
        self._gateway_url = gateway_url
        self._folder = folder
        self._journal = journal
        self._draw = draw
        self.clock = WallClock(folder)
        self._numbers = count(1)
        self._may_run = asyncio.Event()
        self._may_run.set()
        self._must_die = asyncio.Event()
        self.alive: list[Life] = []

    @property
    def addresses(self) -> list[str]:
        """Where the API is served at this moment."""
        return [life.address for life in self.alive if life.address is not None]

    async def keep(self, name: str) -> None:
        """Keep one process running and dying, until the soak is over: then it is left running."""
        draw = self._draw.part(name)
        while not self._journal.over.is_set():
            await self._may_run.wait()
            life = await self._start()
            if draw.random() > STILLBORN:
                await self._first(life, life.is_serving.wait())
            if draw.random() < FROZEN:
                await self._first(life, asyncio.sleep(draw.uniform(1, 8)))
                await self._freeze(life, draw.choice((draw.uniform(2, 5), draw.uniform(8, 12))))
            await self._first(life, asyncio.sleep(draw.uniform(2, 25)))
            if life.status is not None:
                self._journal.complain(f"{life.name} ended by itself: {life.status}")
            elif self._journal.over.is_set():
                return
            await self._end(life, signal.SIGTERM if draw.random() < STOPPED else signal.SIGKILL)
            await self._journal.rest(draw.choice((0, 0, 1, 3)))
        await self._start()

    async def black_out(self, seconds: float) -> None:
        """Kill all at once and leave all dead for that long."""
        with self._journal.trouble("both dead"):
            self._may_run.clear()
            self._must_die.set()
            await self._journal.rest(seconds)
            self._must_die.clear()
            self._may_run.set()

    async def close(self, number: signal.Signals) -> None:
        """End what runs."""
        for life in list(self.alive):
            await self._end(life, number)

    async def _start(self) -> Life:
        name = f"life_{next(self._numbers)}"
        life = Life(name, self._database.url(name), self._gateway_url, self._journal, self.clock)
        self.alive.append(life)
        await life.start(self._folder)
        return life

    async def _end(self, life: Life, number: signal.Signals) -> None:
        if self._must_die.is_set():
            number = signal.SIGKILL
        what = "killed" if number == signal.SIGKILL else "stopped"
        with self._journal.trouble(f"mailer {what}", life.name):
            await life.end(number)
        self.alive.remove(life)

    async def _freeze(self, life: Life, seconds: float) -> None:
        """Stop a process in its tracks, long enough to lose its leases; it does not know."""
        if life.status is None:
            with self._journal.trouble("mailer frozen", life.name):
                life.signal(signal.SIGSTOP)
                await self._first(life, asyncio.sleep(seconds))
                life.signal(signal.SIGCONT)

    async def _first(self, life: Life, what: Coroutine[Any, Any, object]) -> None:
        """Wait for something, or until a process is to die with all others, or has died."""
        ends = (what, self._must_die.wait(), self._journal.over.wait(), life.ended())
        waits = [asyncio.create_task(end) for end in ends]
        try:
            await asyncio.wait(waits, timeout=harness.PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


@asynccontextmanager
async def fleet_on(
    database: Postgres, gateway_url: str, folder: Path, journal: Journal, draw: Draw
) -> AsyncIterator[Fleet]:
    """Give a fleet; what still runs of it at the end is killed."""
    connection = await asyncpg.connect(database.url())
    await connection.execute(";".join(ADD_ROLE.format(n) for n in range(1, LIVES)))
    await connection.close()
    fleet = Fleet(database, gateway_url, folder, journal, draw)
    try:
        yield fleet
    finally:
        await fleet.close(signal.SIGKILL)


async def trouble_database(database: Postgres, journal: Journal, draw: Draw) -> None:
    """Restart PostgreSQL, crash it, keep it down, or cut all its connections."""
    while await journal.rest(draw.uniform(6, 20)):
        stop = draw.choice((signal.SIGINT, signal.SIGQUIT))
        how = "crashed" if stop == signal.SIGQUIT else "restarted"
        match draw.choices(("cut", "restart", "outage"), (3, 4, 1))[0]:
            case "cut":
                with journal.trouble("connections cut"):
                    await _cut(database)
            case "restart":
                with journal.trouble(f"PostgreSQL {how}"):
                    await database.stop(stop)
                    await database.start()
            case _:
                with journal.trouble(f"PostgreSQL down, {how}"):
                    await database.stop(stop)
                    await journal.rest(draw.uniform(5, 20))
                    await database.start()


async def _cut(database: Postgres) -> None:
    connection = await asyncpg.connect(database.url())
    await connection.execute(CUT_ALL)
    await connection.close()


async def trouble_gateway(sandbox: Sandbox, journal: Journal, draw: Draw) -> None:
    """Stop the gateway for a while, which refuses, or freeze it, which keeps all waiting."""
    while await journal.rest(draw.uniform(10, 30)):
        if draw.random() < DOWN:
            with journal.trouble("gateway down"):
                await sandbox.stop()
                await journal.rest(draw.uniform(0, 6))
                await sandbox.start()
        else:
            with journal.trouble("gateway frozen"):
                sandbox.signal(signal.SIGSTOP)
                await journal.rest(draw.uniform(0.5, 5))
                sandbox.signal(signal.SIGCONT)


async def trouble_all(fleet: Fleet, journal: Journal, draw: Draw) -> None:
    """Now and then leave no process alive for some seconds."""
    while await journal.rest(draw.uniform(20, 50)):
        await fleet.black_out(draw.uniform(2, 8))
