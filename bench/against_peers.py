"""Measure how many times faster mailer sends than two general job queues.

The job queues, called peers here, are PgQueuer, and Celery with RabbitMQ. They and mailer take
turns on one machine. Each reads messages with phone and text from PostgreSQL, posts each to the
same sink, 50 at once, and marks its row as delivered. The rate is measured from the first to the
last request at the sink.

The peers' jobs are enqueued before their workers start, and their PostgreSQL has the settings of
mailer's embedded one. To save time the peers send fewer messages than mailer. This is fair as long
as their rate does not depend on the number of messages. To show that, each round prints their rate
in the second half of the messages, divided by that in the first half: it should be near 1.
`peers/by_pgqueuer.py` and `peers/by_celery.py` describe their set-up.

Limits: median ratios of at least 5 to PgQueuer and of at least 15 to Celery. The peers' packages
are installed into `.venv/peers`. RabbitMQ is Debian's `rabbitmq-server`; without it Celery does not
run, and its limit counts as broken. Takes about four minutes.
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
from mailer.embedded_postgres.cluster import embedded_postgres
from mailer.sample_data import TEXT
from peers.environment import peers_python
from peers.rabbitmq import is_installed, rabbitmq

PEER_TIMEOUT = 120.0
"""Seconds that a peer may take for its messages."""
POLL_INTERVAL = 0.2
"""Seconds between two checks whether a peer has sent all messages."""
# The fillfactor leaves half of each page free. So an update puts the new version of a row into the
# same page and writes nothing to the index (HOT update), which spares the peers work.
CREATE_TABLE = """
    DROP TABLE IF EXISTS message;
    CREATE TABLE message (
        id bigint PRIMARY KEY, phone bigint NOT NULL, text text NOT NULL,
        status text NOT NULL DEFAULT 'scheduled', delivered_at timestamptz
    ) WITH (fillfactor = 50)"""
CREATE_MESSAGES = """
    INSERT INTO message (id, phone, text)
    SELECT n, 79000000000 + n, $2 FROM generate_series(1, $1::bigint) AS n"""
INSTALL_RABBITMQ = "apt-get install rabbitmq-server"
CELERY_WORKER_ARGUMENTS = (
    "-m celery --app by_celery worker --pool gevent --loglevel WARNING"
    " --without-gossip --without-mingle --without-heartbeat"
)
"""Arguments of Python. The last three switch off messages between workers, which are not needed."""
HAS_UNSENT = "SELECT EXISTS (SELECT FROM message WHERE status <> 'delivered')"


class Peer(msgspec.Struct, frozen=True):
    """A general job queue."""

    name: str
    min_ratio: float
    """How many times as fast mailer must be."""
    messages: int
    """Messages that it sends in each round."""
    enqueue: str
    """Arguments of Python, separated by spaces, that enqueue the jobs."""
    work: str
    """Arguments of Python, separated by spaces, that run a worker."""
    needs_broker: bool = False
    """Whether it needs RabbitMQ."""


class PeerResult(msgspec.Struct, frozen=True):
    """Result of a peer in one round."""

    rate: float
    """Messages a second."""
    half_ratio: float
    """Rate of the second half of the messages, divided by that of the first half."""


class PeerRunner(msgspec.Struct, frozen=True):
    """Runs the processes of the peers, with their PostgreSQL and the sink."""

    python: Path
    """The interpreter of the environment with the peers' packages."""
    environ: dict[str, str]
    workers: int
    """Worker processes of each peer."""
    database: asyncpg.Connection
    sink: harness.SinkProcess

    async def run_peer(self, peer: Peer) -> PeerResult:
        """Create messages and let a peer send them.

        Raises `RuntimeError` when the jobs are not enqueued, a worker ends early, or the number of
        requests is not the number of messages; `TimeoutError` after `PEER_TIMEOUT`.
        """
        await self.database.execute(CREATE_TABLE)
        await self.database.execute(CREATE_MESSAGES, peer.messages, TEXT)
        async with asyncio.timeout(PEER_TIMEOUT):
            async with self._run_python(peer.enqueue) as process:
                if await process.wait() != 0:
                    raise RuntimeError(f"{peer.name} did not enqueue its jobs")
            await self.database.execute("VACUUM ANALYZE")
            async with AsyncExitStack() as stack:
                contexts = [self._run_python(peer.work) for _ in range(self.workers)]
                workers = [await stack.enter_async_context(context) for context in contexts]
                while await self.database.fetchval(HAS_UNSENT):
                    if any(worker.returncode is not None for worker in workers):
                        raise RuntimeError(f"a worker of {peer.name} ended")
                    await asyncio.sleep(POLL_INTERVAL)
        report = await self.sink.read_report()  # of the requests since the previous report
        if report.requests != peer.messages:
            raise RuntimeError(f"{peer.messages} messages, but {report.requests} requests")
        first_at, middle_at, last_at = (report.tenth_times[tenth] for tenth in (0, 5, 10))
        # both halves have as many messages, so the ratio of rates is the inverse ratio of times
        half_ratio = (middle_at - first_at) / (last_at - middle_at)
        return PeerResult(report.rate, half_ratio)

    @asynccontextmanager
    async def _run_python(self, arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run the peers' Python during the block; print its output when the block fails."""
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
async def peer_runner(
    python: Path, sink: harness.SinkProcess, workers: int, *, has_broker: bool
) -> AsyncIterator[PeerRunner]:
    """Run PostgreSQL, and RabbitMQ if `has_broker`, for the peers."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        os.chmod(folder, 0o755)  # noqa: PTH101, S103  # PostgreSQL's own user must enter it
        database_url = await stack.enter_async_context(embedded_postgres(folder))
        database = await asyncpg.connect(database_url)
        stack.push_async_callback(database.close)
        variables = {
            "CONCURRENCY": str(CONCURRENCY // workers),
            "DATABASE_URL": database_url,
            "SINK_URL": sink.url,
            "TOKEN": harness.TOKEN,
        }
        if has_broker:
            variables["BROKER_URL"] = await stack.enter_async_context(rabbitmq(folder))
        environ = dict(os.environ) | {f"PEER_{name}": value for name, value in variables.items()}
        yield PeerRunner(python, environ, workers, database, sink)


async def main(python: Path, peers: list[Peer], messages: int, rounds: int, workers: int) -> int:
    """Run the rounds, print the rates and check their ratios; return the exit status."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # a coroutine always runs in a task here
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    has_broker = is_installed()
    runnable = [peer for peer in peers if has_broker or not peer.needs_broker]
    ratios: dict[str, list[float]] = {peer.name: [] for peer in runnable}
    async with (
        harness.sink() as sink,
        peer_runner(python, sink, workers, has_broker=has_broker) as runner,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as mailer,
    ):
        await mailer.create_clients(messages)
        await harness.send_to_all(mailer, sink, messages)  # to warm up
        for index in range(rounds):
            print(f"round {index + 1}, messages a second:", end=" ", flush=True)
            results = [await runner.run_peer(peer) for peer in runnable]
            rate = (await harness.send_to_all(mailer, sink, messages)).rate
            for peer, result in zip(runnable, results, strict=True):
                ratios[peer.name].append(rate / result.rate)
                print(f"{peer.name} {result.rate:,.0f}", end=" ")
                print(f"(second half {result.half_ratio:.2f} of the first),", end=" ")
            print(f"mailer {rate:,.0f}", flush=True)
    return check_limits(peers, ratios)


def check_limits(peers: list[Peer], ratios: dict[str, list[float]]) -> int:
    """Print the median ratios with their limits; return the exit status."""
    verdict = harness.Verdict()
    for peer in peers:
        limit = f"at least {peer.min_ratio}"
        if peer.name in ratios:
            ratio = median(ratios[peer.name])
            figure = f"mailer / {peer.name}: median ratio {ratio:.1f}"
            verdict.check(figure, limit=limit, holds=ratio >= peer.min_ratio)
        else:
            figure = f"mailer / {peer.name}: not run, needs `{INSTALL_RABBITMQ}`"
            verdict.check(figure, limit=limit, holds=False)
    return verdict.status


def run(args: argparse.Namespace) -> int:
    """Install the peers' packages, warn if RabbitMQ is missing, and run the benchmark."""
    peers = [
        Peer(
            name="PgQueuer",
            min_ratio=5,
            messages=args.pgqueuer_messages,
            enqueue="by_pgqueuer.py enqueue",
            work="by_pgqueuer.py work",
        ),
        Peer(
            name="Celery",
            min_ratio=15,
            messages=args.celery_messages,
            enqueue="by_celery.py",
            work=f"{CELERY_WORKER_ARGUMENTS} --concurrency {CONCURRENCY // args.workers}",
            needs_broker=True,
        ),
    ]
    if not is_installed():
        print(f"Celery is not run, RabbitMQ is missing: `{INSTALL_RABBITMQ}`", flush=True)
    return asyncio.run(main(peers_python(), peers, args.messages, args.rounds, args.workers))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=50_000, help="messages mailer sends")
    parser.add_argument("--pgqueuer-messages", type=int, default=10_000)
    parser.add_argument("--celery-messages", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="worker processes of each peer")
    sys.exit(run(parser.parse_args()))
