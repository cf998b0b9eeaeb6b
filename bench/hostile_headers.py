"""How a mailing is sent beside 120 connections that ask with headers as bad as can be.

None of them shows a credential that opens anything. A mailing goes out at a steady rate to a sink,
through a real process. For each header the connections ask again and again, in turns with an
ordinary header of its size and with it: a flood slows sending down whatever it says, a hostile
header is not to slow it down more. Limits: 0.8 of the rate beside the ordinary header, and 1.5
times the processor time of an answer, which a busy machine disturbs less. Takes ten minutes.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import cycle
from statistics import mean
from urllib.parse import urlsplit

import msgspec
import uvloop

import harness
from loop_blocks import HEADERS

CONNECTIONS = 120
RATE = 100
"""Messages a second."""
SECONDS, TURNS = 5.0, 2
"""For which each rate is measured, and how often."""
SETTLE = 1.0
"""Seconds for the connections to be under way."""
LEAST_SHARE, MOST_COST = 0.8, 1.5
"""Of the rate, and of the processor time of an answer, beside an ordinary header."""
PATHS = ("/login", "/api/v1/clients", "/static/pages.css", "/nowhere", "/")
PATIENCE = 30.0
"""Seconds to wait for an answer."""


class Strangers:
    """Connections that send a request, wait for its answer, and send the next."""

    def __init__(self, address: str, headers: dict[str, str]) -> None:
        self.answers = 0
        self._address = urlsplit(address)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._heads = [
            f"GET {path} HTTP/1.1\r\nHost: {self._address.netloc}\r\n{lines}\r\n".encode("latin-1")
            for path in PATHS
        ]

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Ask until the end of the block."""
        async with asyncio.TaskGroup() as tasks:
            every = [tasks.create_task(self._ask_again()) for _ in range(CONNECTIONS)]
            await asyncio.sleep(SETTLE)
            yield
            for each in every:
                each.cancel()

    async def _ask_again(self) -> None:
        while True:
            reader, writer = await asyncio.open_connection(
                self._address.hostname, self._address.port
            )
            try:
                for head in cycle(self._heads):
                    writer.write(head)
                    async with asyncio.timeout(PATIENCE):
                        is_kept = await self._read(reader)
                    self.answers += 1
                    if not is_kept:
                        break
            except (OSError, EOFError, TimeoutError):
                await asyncio.sleep(SETTLE / 10)
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> bool:
        """Read an answer; return whether the connection is kept."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"\r\ncontent-length:" not in head:
            return False
        length = int(head.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        return b"\r\nconnection: close" not in head


class Beside(msgspec.Struct, frozen=True):
    """What there was beside connections that send a header."""

    rate: float
    """Messages a second."""
    answers: float
    """Answers a second."""
    cost: float
    """Processor time of the process for an answer, with its share of sending; milliseconds."""


async def beside(
    mailer: harness.Mailer, sink: harness.SinkProcess, headers: dict[str, str]
) -> Beside:
    """Return what there is beside connections that send some headers."""
    strangers = Strangers(mailer.address, headers)
    async with strangers.asking():
        await sink.taken()
        answers, spent = strangers.answers, harness.cpu_seconds(mailer.pid)
        began = time.monotonic()
        await asyncio.sleep(SECONDS)
        seconds = time.monotonic() - began
        answers = strangers.answers - answers
        spent = harness.cpu_seconds(mailer.pid) - spent
        messages = (await sink.taken()).requests
    return Beside(messages / seconds, answers / seconds, spent * 1e3 / max(1, answers))


def mean_of(turns: Sequence[Beside]) -> Beside:
    """Return the mean of each figure."""
    return Beside(*(mean(each) for each in zip(*map(msgspec.structs.astuple, turns), strict=True)))


async def compare(
    mailer: harness.Mailer, sink: harness.SinkProcess, headers: dict[str, str]
) -> tuple[Beside, Beside]:
    """Return what there is beside an ordinary header of that size, and beside these."""
    padding = {"X-Padding": "a" * sum(map(len, headers.values()))}
    turns = [
        (await beside(mailer, sink, padding), await beside(mailer, sink, headers))
        for _ in range(TURNS)
    ]
    return mean_of([plain for plain, _ in turns]), mean_of([hostile for _, hostile in turns])


async def main(only: str) -> int:
    """Ask with every header beside a mailing, and judge; return the exit status."""
    verdict = harness.Verdict()
    settings = {"gateway_rate": RATE, "trusted_proxies": "127.0.0.1"}
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, harness.SERVE, auth="required", **settings) as mailer,
    ):
        await mailer.add_clients(100_000)
        await mailer.add_mailing()
        await asyncio.sleep(SECONDS)
        await sink.taken()
        await asyncio.sleep(SECONDS)
        print(f"alone: {(await sink.taken()).requests / SECONDS:.0f} messages a second")
        for name, headers in HEADERS.items():
            if only not in name:
                continue
            plain, hostile = await compare(mailer, sink, headers)
            print(
                f"{name}: {hostile.rate:.0f} messages and {hostile.answers:.0f} answers a second,"
                f" {plain.rate:.0f} and {plain.answers:.0f} beside an ordinary header"
            )
            share = hostile.rate / max(1.0, plain.rate)
            figure = f"  {share:.2f} of the rate beside an ordinary header"
            verdict.check(figure, limit=f"{LEAST_SHARE}", holds=share >= LEAST_SHARE)
            cost = hostile.cost / plain.cost
            figure = f"  {cost:.2f} of the cost of an answer, {plain.cost:.2f} ms"
            verdict.check(figure, limit=f"{MOST_COST}", holds=cost <= MOST_COST)
            sys.stdout.flush()
        repeats = (await sink.taken()).repeats
    verdict.check(f"messages sent twice: {repeats}", limit="0", holds=repeats == 0)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="headers whose names hold this")
    given = parser.parse_args()
    sys.exit(uvloop.run(main(given.only)))
