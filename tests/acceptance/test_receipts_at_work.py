"""20,000 messages and their receipts while workers are killed and the database restarts.

The receipts come early, late, twice and in disorder, and again while mailer is away. The logs of
the gateways show which of them mailer has answered with 200.
"""

import asyncio
import json
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.acceptance.sandbox_processes import SandboxProcess, sandbox
from tests.daemons import free_port
from tests.event_timeout import EVENT_TIMEOUT
from tests.processes import MailerProcess, Mailers, mailers, until_true
from tests.servers import Programs, Server

from mailer.sample_data import new_mailing

CLIENTS = 20_000
STEP = 2_500
"""Messages that gateways must accept before the next event."""
SECRET = "secret-of-the-url"  # noqa: S105  # of a test
CHAOS = (
    *("--receipt-delay", "1", "--receipt-failed", "0.1", "--receipt-loss", "0.3"),
    *("--receipt-repeat", "0.2", "--receipt-disorder", "0.3", "--receipt-early", "0.1"),
)
KINDS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "twilio": ({"account": "AC1", "token": "t0k"}, ("--token", "t0k")),  # signs its calls
    "json": ({"callback_secret": SECRET}, ()),  # calls a URL with a secret
}
"""By kind: keys of the configuration, and options of the sandbox."""
LIMITS = """weight = 1
concurrency = 60
timeout = 3
"""
SETTINGS = {
    "lease": "5",
    "receipt_wait": "8",
    "breaker_failures": "1000",
}
COUNT_ACCEPTED = "SELECT sum(sent + delivered + undelivered)::int FROM mailing_counts"
COUNT_AWAITING = """
    SELECT count(*) FROM message
    WHERE status IN ('scheduled', 'sending') OR status = 'sent' AND reason IS NULL"""
SELECT_MESSAGES = """
    SELECT json_agg(json_build_object('id', id, 'status', status, 'reason', reason,
        'gateway', gateway, 'gateway_id', gateway_message_id, 'receipts', receipts))::text
    FROM message"""

Row = dict[str, Any]


@pytest.fixture
async def server(data_dir: Path) -> AsyncIterator[Server]:
    """A running server with an empty database."""
    programs = Programs(data_dir)
    programs.chown(data_dir)
    server = Server(programs, "data")
    server.create()
    await server.start(database="postgres")
    await server.create_database()
    yield server
    await server.stop()


class Workers:
    """Two mailer processes, each under an address of its own that stays after a kill."""

    def __init__(self, start: Mailers, file: Path) -> None:
        self._start = start
        self._file = file
        self._ports = [free_port(), free_port()]
        self.processes: list[MailerProcess] = []

    async def start(self) -> None:
        """Start both."""
        self.processes = [await self._start_at(port) for port in self._ports]

    async def kill(self, *indexes: int, pause: float = 0.0) -> None:
        """Kill some at once, and start them again after `pause` seconds."""
        for index in indexes:
            await self.processes[index].stop(signal.SIGKILL)
        await asyncio.sleep(pause)
        for index in indexes:
            self.processes[index] = await self._start_at(self._ports[index])

    async def _start_at(self, port: int) -> MailerProcess:
        url = f"http://127.0.0.1:{port}"
        return await self._start(
            port=str(port), public_url=url, gateways=str(self._file), **SETTINGS
        )


@asynccontextmanager
async def running_sandboxes(folder: Path) -> AsyncIterator[dict[str, SandboxProcess]]:
    """Run a sandbox of each kind, and write `gateways.toml`."""
    async with AsyncExitStack() as stack:
        gateways: dict[str, SandboxProcess] = {}
        tables: list[str] = []
        for kind, (keys, options) in KINDS.items():
            own_folder = folder / kind
            own_folder.mkdir()
            running = sandbox(own_folder, "--kind", kind, *options, *CHAOS, "--seed", "1")
            gateways[kind] = await stack.enter_async_context(running)
            values = {"name": kind, "kind": kind, "url": gateways[kind].url, "sender": "1008"}
            lines = (f"{key} = {json.dumps(value)}" for key, value in (values | keys).items())
            tables.append("\n".join(["[[gateway]]", *lines, LIMITS]))
        (folder / "gateways.toml").write_text("\n".join(tables))
        yield gateways


def expected_statuses(message: Row, receipts: list[Row]) -> set[str]:
    """Return the statuses that a message may have after its receipts.

    It is exactly one, unless the gateway has accepted the message twice, because its first answer
    was lost with a worker, or does not know whether mailer has stored a receipt.
    """
    taken = [row for row in receipts if row["taken"]]
    if any(row["status"] == "delivered" for row in taken):
        return {"delivered"}
    failures = {row["gateway_id"] for row in taken if row["status"] == "failed"}
    last_id = message["gateway_id"]
    statuses = {"undelivered"} if failures else {"sent"}
    if failures and last_id is not None and not any(last_id.endswith(id_) for id_ in failures):
        statuses.add("sent")
    unanswered = {row["status"] for row in receipts if not row["taken"] and row["attempts"]}
    if "delivered" in unanswered:
        statuses.add("delivered")
    if "failed" in unanswered:
        statuses.add("undelivered")
    return statuses


async def inject_faults(server: Server, workers: Workers) -> None:
    """Kill workers, and restart and crash the database, each after some more messages."""

    async def restart(number: signal.Signals, pause: float = 0.0) -> None:
        await server.stop(number)
        await asyncio.sleep(pause)
        await server.start()

    async def restart_and_kill() -> None:
        await asyncio.gather(restart(signal.SIGINT), workers.kill(0))

    faults: tuple[Callable[[], Awaitable[None]], ...] = (
        lambda: workers.kill(0),
        lambda: restart(signal.SIGINT),
        lambda: workers.kill(0, 1, pause=1),
        lambda: restart(signal.SIGQUIT, pause=1),
        lambda: workers.kill(1),
        restart_and_kill,
    )
    for number, fault in enumerate(faults, 1):

        async def has_accepted(count: int = number * STEP) -> bool:
            return bool((await server.query(COUNT_ACCEPTED)) >= count)  # type: ignore[operator]

        await until_true(has_accepted)
        await fault()


async def test_every_message_ends_as_its_last_decisive_receipt_says(
    server: Server, tmp_path: Path
) -> None:
    async with running_sandboxes(tmp_path) as gateways, mailers(server.url) as start_mailer:
        workers = Workers(start_mailer, tmp_path / "gateways.toml")
        await workers.start()
        await workers.processes[0].create_clients(CLIENTS)
        created = await workers.processes[0].call("POST", "/mailings", new_mailing(), 201)
        await inject_faults(server, workers)
        await until_settled(server)
        for process in workers.processes:
            assert await process.stop() == 0
        rows = msgspec.json.decode(str(await server.query(SELECT_MESSAGES)))
        mailing = await read_mailing(start_mailer, created["id"])
    receipts = {kind: gateway.all_receipts() for kind, gateway in gateways.items()}
    assert_receipts_were_difficult([row for rows in receipts.values() for row in rows])
    assert_outcomes(rows, receipts)
    statuses = Counter(row["status"] for row in rows)
    assert statuses.total() == CLIENTS
    for status in ("sent", "delivered", "undelivered"):
        assert mailing[f"{status}_messages"] == statuses[status] > 0


async def until_settled(server: Server) -> None:
    """Wait until nothing is sent and no receipt is awaited any more."""

    async def is_settled() -> bool:
        return await server.query(COUNT_AWAITING) == 0

    async with asyncio.timeout(4 * EVENT_TIMEOUT):
        while not await is_settled():
            await asyncio.sleep(0.3)


async def read_mailing(start_mailer: Mailers, mailing_id: int) -> Row:
    mailer = await start_mailer()
    return await mailer.mailing(mailing_id)


def assert_receipts_were_difficult(receipts: Iterable[Row]) -> None:
    """Assert that receipts came early, twice, and again after mailer had not answered."""
    taken = [row for row in receipts if row["taken"]]
    assert sum(row["attempts"] > 1 for row in taken) > 100
    assert sum(row.get("repeat", False) for row in taken) > 1_000
    assert sum(row.get("early", False) for row in taken) > 1_000
    assert {row["status"] for row in taken} == {"sent", "delivered", "failed"}


def assert_outcomes(messages: list[Row], receipts: dict[str, list[Row]]) -> None:
    """Assert the status and the history of every message."""
    by_id: dict[int, list[Row]] = defaultdict(list)
    for gateway, rows in receipts.items():
        for row in rows:
            by_id[row["id"]].append(row | {"gateway": gateway})
    wrong = []
    for message in messages:
        own = by_id[message["id"]]
        stored = {
            ("failed" if each["status"] == "expired" else each["status"], each["gateway"])
            for each in message["receipts"] or ()
        }
        taken = {(row["status"], row["gateway"]) for row in own if row["taken"]}
        sent = {(row["status"], row["gateway"]) for row in own if row["attempts"]}
        is_right = message["status"] in expected_statuses(message, own)
        if not is_right or not taken <= stored <= sent:
            wrong.append((message, own))
    assert not wrong, (len(wrong), wrong[:5])
