"""How many times faster mailer does the work than two general job queues do it.

In turns on one machine: PgQueuer, Celery with RabbitMQ, and mailer take messages that wait with
phone and text in PostgreSQL, post each to the same sink, 50 at once, and mark its row as delivered.
A rate is that from the first to the last arrival at the sink; the peers' jobs are all put in before
their workers start, and their PostgreSQL is run as mailer runs its own. The peers send fewer
messages, for time's sake: each turn shows that their rate is steady. How they are set up is told in
`peers/by_pgqueuer.py` and `peers/by_celery.py`.

Limits: a median of at least 5 times PgQueuer's rate and of at least 15 times Celery's. The peers'
packages go to `.venv/peers`; RabbitMQ is Debian's `rabbitmq-server`, and a Celery that cannot run
for want of it counts as a broken limit. Takes about four minutes.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median

import asyncpg
import msgspec

import harness
from against_bare import CONCURRENCY
from mailer.db.embedded import embedded_postgres
from peers.environment import peers_python
from peers.rabbitmq import is_installed, rabbitmq

PATIENCE = 120.0
"""Seconds that a peer may take for its messages."""
PAUSE = 0.2
"""Seconds between looks at how far a peer is."""
NEW_MESSAGES = """
    DROP TABLE IF EXISTS message;
    CREATE TABLE message (
        id bigint PRIMARY KEY, phone bigint NOT NULL, text text NOT NULL,
        status text NOT NULL DEFAULT 'scheduled', delivered_at timestamptz
    ) WITH (fillfactor = 50)"""
ADD_MESSAGES = """
    INSERT INTO message (id, phone, text)
    SELECT n, 79000000000 + n, $2 FROM generate_series(1, $1::bigint) AS n"""
INSTALL_RABBITMQ = "apt-get install rabbitmq-server"
CELERY = (
    "-m celery --app by_celery worker --pool gevent --loglevel WARNING"
    " --without-gossip --without-mingle --without-heartbeat"
)
IS_LEFT = "SELECT EXISTS (SELECT FROM message WHERE status <> 'delivered')"


class Peer(msgspec.Struct, frozen=True):
    """A general job queue: arguments of its Python that put jobs in, and that do them."""

    name: str
    least_ratio: float
    messages: int
    enqueue: str
    work: str
    needs_broker: bool = False


class Sending(msgspec.Struct, frozen=True):
    """Messages a second, and how much faster the second half of them went than the first."""

    rate: float
    steadiness: float


class Arena(msgspec.Struct, frozen=True):
    """Where the peers do their work: their processes, their PostgreSQL and the sink."""

    python: Path
    environ: dict[str, str]
    workers: int
    database: asyncpg.Connection
    sink: harness.SinkProcess

    async def sending(self, peer: Peer) -> Sending:
        """Have a peer send new messages. Raises `RuntimeError` when not each is sent once."""
        await self.database.execute(NEW_MESSAGES)
        await self.database.execute(ADD_MESSAGES, peer.messages, harness.TEXT)
        async with asyncio.timeout(PATIENCE):
            async with self._running(peer.enqueue) as enqueuing:
                if await enqueuing.wait() != 0:
                    raise RuntimeError(f"no jobs for {peer.name}")
            await self.database.execute("VACUUM ANALYZE")
            async with AsyncExitStack() as stack:
                running = [self._running(peer.work) for _ in range(self.workers)]
                workers = [await stack.enter_async_context(each) for each in running]
                while await self.database.fetchval(IS_LEFT):
                    if any(worker.returncode is not None for worker in workers):
                        raise RuntimeError(f"a worker of {peer.name} ended")
                    await asyncio.sleep(PAUSE)
        taken = await self.sink.taken()
        if taken.requests != peer.messages:
            raise RuntimeError(f"{peer.messages} messages, and {taken.requests} requests")
        begin, middle, end = taken.marks[0], taken.marks[5], taken.marks[-1]
        return Sending(taken.rate, (middle - begin) / (end - middle))

    @asynccontextmanager
    async def _running(self, arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run the peers' Python; shows what it said when something fails."""
        with tempfile.TemporaryFile() as output:
            process = await asyncio.create_subprocess_exec(
                self.python,
                *arguments.split(),
                cwd=Path(__file__).with_name("peers"),
                env=self.environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            try:
                yield process
            except BaseException:
                output.seek(0)
                sys.stderr.buffer.write(output.read())
                raise
            finally:
                await harness.stop(process)


@asynccontextmanager
async def arena(
    python: Path, sink: harness.SinkProcess, workers: int, *, has_broker: bool
) -> AsyncIterator[Arena]:
    """Run PostgreSQL, and RabbitMQ if it is here, for the peers."""
    async with AsyncExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        os.chmod(name, 0o755)  # noqa: PTH101, S103  # PostgreSQL's user passes through
        folder = Path(name)
        database_url = await stack.enter_async_context(embedded_postgres(folder))
        database = await asyncpg.connect(database_url)
        stack.push_async_callback(database.close)
        told = {
            "CONCURRENCY": str(CONCURRENCY // workers),
            "DATABASE_URL": database_url,
            "SINK_URL": sink.url,
            "TOKEN": harness.TOKEN,
        }
        if has_broker:
            told["BROKER_URL"] = await stack.enter_async_context(rabbitmq(folder))
        environ = dict(os.environ) | {f"PEER_{name}": value for name, value in told.items()}
        yield Arena(python, environ, workers, database, sink)


async def main(python: Path, peers: list[Peer], messages: int, turns: int, workers: int) -> int:
    """Take turns, print the rates and judge their ratios; return the exit status."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # this runs in it
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    has_broker = is_installed()
    ready = [peer for peer in peers if has_broker or not peer.needs_broker]
    ratios: dict[str, list[float]] = {peer.name: [] for peer in ready}
    async with (
        harness.sink() as sink,
        arena(python, sink, workers, has_broker=has_broker) as place,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as mailer,
    ):
        await mailer.add_clients(messages)
        await harness.send_to_all(mailer, sink, messages)  # to warm up
        for turn in range(turns):
            print(f"turn {turn + 1}, messages a second:", end=" ", flush=True)
            sendings = [await place.sending(peer) for peer in ready]
            own = (await harness.send_to_all(mailer, sink, messages)).rate
            for peer, sending in zip(ready, sendings, strict=True):
                ratios[peer.name].append(own / sending.rate)
                print(f"{peer.name} {sending.rate:,.0f}", end=" ")
                print(f"(second half {sending.steadiness:.2f} of the first),", end=" ")
            print(f"mailer {own:,.0f}", flush=True)
    return judge(peers, ratios)


def judge(peers: list[Peer], ratios: dict[str, list[float]]) -> int:
    """Print the medians of the ratios with their limits; return the exit status."""
    verdict = harness.Verdict()
    for peer in peers:
        limit = f"at least {peer.least_ratio}"
        if peer.name in ratios:
            ratio = median(ratios[peer.name])
            figure = f"mailer / {peer.name}: median ratio {ratio:.1f}"
            verdict.check(figure, limit=limit, holds=ratio >= peer.least_ratio)
        else:
            figure = f"mailer / {peer.name}: not run, it needs `{INSTALL_RABBITMQ}`"
            verdict.check(figure, limit=limit, holds=False)
    return verdict.status


def run(given: argparse.Namespace) -> int:
    """Say what is missing, install what can be installed, and go on."""
    peers = [
        Peer(
            name="PgQueuer",
            least_ratio=5,
            messages=given.pgqueuer_messages,
            enqueue="by_pgqueuer.py enqueue",
            work="by_pgqueuer.py work",
        ),
        Peer(
            name="Celery",
            least_ratio=15,
            messages=given.celery_messages,
            enqueue="by_celery.py",
            work=f"{CELERY} --concurrency {CONCURRENCY // given.workers}",
            needs_broker=True,
        ),
    ]
    if not is_installed():
        print(f"RabbitMQ is not here, so Celery is not run: `{INSTALL_RABBITMQ}`", flush=True)
    return asyncio.run(main(peers_python(), peers, given.messages, given.turns, given.workers))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=50_000, help="of mailer")
    parser.add_argument("--pgqueuer-messages", type=int, default=10_000)
    parser.add_argument("--celery-messages", type=int, default=5_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="processes of a peer")
    sys.exit(run(parser.parse_args()))
