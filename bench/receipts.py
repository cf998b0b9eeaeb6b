"""Measure how many receipts mailer takes, stores and counts, and what they cost sending.

Limits, all in one run:

- receipts a second: at least 3 times those of a bare Litestar handler that updates one row for each
  receipt (`bare_receipts.py`), and at least as many as messages that mailer sends a second;
- sending while receipts of an earlier mailing arrive at the rate that sending has without them: at
  least 0.8 of that rate.

Both are measured with one receipt in each call, and with twenty, as some providers send them.

The two sides take turns, so that the machine's noise affects both alike; the median counts. Takes
about two minutes.
"""

import argparse
import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import uvloop

import harness
from mailer.embedded_postgres.cluster import embedded_postgres

ROUNDS = 3
MIN_BARE_RATIO, MIN_SENDING_RATIO, MIN_SENDING_SHARE = 3.0, 1.0, 0.8
SECRET = "a-secret-of-the-benchmark"  # noqa: S105  # the gateway exists only in this benchmark
GATEWAY = """
[[gateway]]
name = "main"
kind = "json"
url = "{url}"
token = "{token}"
callback_secret = "{secret}"

[[gateway]]
name = "lists"
kind = "infobip"
url = "{url}"
token = "{token}"
callback_secret = "{secret}"
order = 2
"""
IN_LIST = 20
"""Receipts in one call of the gateway that sends lists."""
BARE_PATH = "/receipts"
PATH = f"/gateways/main/receipts?secret={SECRET}"
LISTS_PATH = f"/gateways/lists/receipts?secret={SECRET}"
BARE_PATH = "/receipts?message="
SELECT_IDS = "SELECT id FROM message WHERE mailing_id = $1 ORDER BY id"
COUNT_DELIVERED = "SELECT delivered FROM mailing_counts WHERE mailing_id = $1"


async def post_receipts(
    port: int, path: str, ids: Iterable[int], in_list: int, *, rate: float = 0
) -> float:
    """Post receipts from a process of its own; return the receipts a second.

    `rate` is the most receipts a second; 0 sets no limit.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("post_receipts.py"))),
        *(str(port), path, "--in-list", str(in_list), "--rate", str(rate)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate("\n".join(map(str, ids)).encode())
    return float(output)


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@asynccontextmanager
async def bare_handler(database_url: str, count: int) -> AsyncIterator[int]:
    """Run the bare handler; yield its port."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("bare_receipts.py"))),
        *(database_url, str(port), str(count)),
    )
    try:
        async with asyncio.timeout(harness.PROCESS_TIMEOUT):
            while not await _is_open(port):  # noqa: ASYNC110  # it happens in another process
                await asyncio.sleep(harness.POLL_INTERVAL)
        yield port
    finally:
        await harness.stop(process)


async def _is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


class Measurement:
    """The rates that the rounds have measured, a second."""

    def __init__(self) -> None:
        self.bare: list[float] = []
        self.receipts: list[float] = []
        self.sending: list[float] = []
        self.sending_beside: list[float] = []
        self.receipts_beside: list[float] = []


class Receivers(NamedTuple):
    """The ports of mailer and of the bare handler."""

    mailer: int
    bare: int


async def newest_ids(mailer: harness.Mailer) -> tuple[int, list[int]]:
    """Return the id of the newest mailing, and those of its messages."""
    mailing_id = await mailer.database.fetchval("SELECT max(id) FROM mailing")
    return mailing_id, [row[0] for row in await mailer.database.fetch(SELECT_IDS, mailing_id)]


async def measure(
    mailer: harness.Mailer,
    sink: harness.SinkProcess,
    ports: Receivers,
    clients: int,
    in_list: int,
) -> Measurement:
    """Measure each rate once in each round, with so many receipts in a call; 0 for one by one."""
    measured = Measurement()
    path = LISTS_PATH if in_list else PATH
    for _ in range(ROUNDS):
        await mailer.checkpoint()
        measured.sending.append((await harness.send_to_all(mailer, sink, clients)).rate)
        _, awaiting = await newest_ids(mailer)
        bare = post_receipts(ports.bare, BARE_PATH, range(1, clients + 1), in_list)
        measured.bare.append(await bare)
        rate = measured.sending[-1]
        async with asyncio.TaskGroup() as tasks:
            posting = tasks.create_task(
                post_receipts(ports.mailer, path, awaiting, in_list, rate=rate)
            )
            sending = tasks.create_task(harness.send_to_all(mailer, sink, clients))
        measured.sending_beside.append(sending.result().rate)
        measured.receipts_beside.append(posting.result())
        mailing_id, awaiting = await newest_ids(mailer)
        measured.receipts.append(await post_receipts(ports.mailer, path, awaiting, in_list))
        delivered = await mailer.database.fetchval(COUNT_DELIVERED, mailing_id)
        if delivered != clients:
            message = f"{clients} receipts, but {delivered} delivered messages"
            raise RuntimeError(message)
    return measured


def report(verdict: harness.Verdict, name: str, measured: Measurement) -> None:
    """Print the medians of a measurement beside their limits."""
    receipts, sending = median(measured.receipts), median(measured.sending)
    bare, beside = median(measured.bare), median(measured.sending_beside)
    print(
        f"{name}: bare handler {bare:,.0f}, receipts {receipts:,.0f}, sending {sending:,.0f} a"
        f" second; both at once: sending {beside:,.0f},"
        f" receipts {median(measured.receipts_beside):,.0f}"
    )
    for what, ratio, limit in (
        ("receipts to bare handler", receipts / bare, MIN_BARE_RATIO),
        ("receipts to sending", receipts / sending, MIN_SENDING_RATIO),
        ("sending beside receipts to sending alone", beside / sending, MIN_SENDING_SHARE),
    ):
        verdict.check(f"{what}: {ratio:.2f}", limit=f"at least {limit}", holds=ratio >= limit)


async def main(clients: int) -> int:
    """Measure with so many clients, and check the limits; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        os.chmod(folder, 0o755)  # noqa: PTH101, S103  # PostgreSQL's own user must enter it
        gateways = folder / "gateways.toml"
        async with harness.sink() as sink, embedded_postgres(folder) as url:
            gateways.write_text(GATEWAY.format(url=sink.url, token=harness.TOKEN, secret=SECRET))
            async with (
                harness.serve(
                    "",
                    database_url=url,
                    gateways=gateways,
                    public_url="http://127.0.0.1:1",  # nobody calls it by this URL
                ) as mailer,
                bare_handler(url, clients) as bare_port,
            ):
                await mailer.create_clients(clients)
                ports = Receivers(int(mailer.address.rpartition(":")[2]), bare_port)
                verdict = harness.Verdict()
                for in_list in (0, IN_LIST):
                    measured = await measure(mailer, sink, ports, clients, in_list)
                    report(verdict, f"{in_list or 1} in a call", measured)
                return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000)
    sys.exit(uvloop.run(main(parser.parse_args().clients)))
