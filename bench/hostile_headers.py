"""How a mailing is sent beside 120 connections that ask with headers as bad as can be.

None of them shows a credential that opens anything. A mailing goes out at a steady rate to a sink,
through a real process. For each header the connections ask again and again, in turns with an
ordinary header of its size and with it: a flood slows sending down whatever it says, a hostile
header is not to slow it down more. Limits: 0.8 of the rate beside the ordinary header; and before
that, with nothing to send, 1.5 times the processor time of an answer, which other work on the
machine does not disturb. Takes ten minutes.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import cycle
from statistics import mean
from typing import Any
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
"""Of the rate, and of the processor time of an answer, with an ordinary header."""
ANSWERS = 200
"""Of which the processor time is measured in each turn."""
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
    async def asking(self, connections: int) -> AsyncIterator[None]:
        """Ask over so many connections until the end of the block."""
        async with asyncio.TaskGroup() as tasks:
            every = [tasks.create_task(self._ask_again()) for _ in range(connections)]
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


async def beside(
    mailer: harness.Mailer, sink: harness.SinkProcess, headers: dict[str, str]
) -> Beside:
    """Return what there is beside connections that send some headers."""
    strangers = Strangers(mailer.address, headers)
    async with strangers.asking(CONNECTIONS):
        await asyncio.sleep(SETTLE)
        await sink.taken()
        answers, began = strangers.answers, time.monotonic()
        await asyncio.sleep(SECONDS)
        seconds = time.monotonic() - began
        answers = strangers.answers - answers
        messages = (await sink.taken()).requests
    return Beside(messages / seconds, answers / seconds)


async def cost(mailer: harness.Mailer, headers: dict[str, str]) -> float:
    """Return the processor time of an answer, milliseconds."""
    strangers = Strangers(mailer.address, headers)
    async with strangers.asking(1):
        while not strangers.answers:  # noqa: ASYNC110  # a count, which nothing signals
            await asyncio.sleep(harness.PAUSE)
        answers, spent = strangers.answers, harness.cpu_seconds(mailer.pid)
        while strangers.answers < answers + ANSWERS:  # noqa: ASYNC110  # likewise
            await asyncio.sleep(harness.PAUSE)
        spent = harness.cpu_seconds(mailer.pid) - spent
        return spent * 1e3 / (strangers.answers - answers)


def padding(headers: dict[str, str]) -> dict[str, str]:
    """Return an ordinary header of the size of some others."""
    return {"X-Padding": "a" * sum(map(len, headers.values()))}


async def judge_cost(mailer: harness.Mailer, verdict: harness.Verdict, name: str) -> None:
    """Hold the processor time of an answer to a header against that to an ordinary one."""
    headers = HEADERS[name]
    turns = [
        (await cost(mailer, padding(headers)), await cost(mailer, headers)) for _ in range(TURNS)
    ]
    plain, hostile = (mean(each) for each in zip(*turns, strict=True))
    figure = f"{name}: an answer takes {hostile:.2f} ms, and {plain:.2f} ms with an ordinary header"
    verdict.check(figure, limit=f"{MOST_COST} times", holds=hostile <= MOST_COST * plain)


async def judge_rate(
    mailer: harness.Mailer, sink: harness.SinkProcess, verdict: harness.Verdict, name: str
) -> None:
    """Hold the rate beside a header against that beside an ordinary one."""
    headers = HEADERS[name]
    turns = [
        (await beside(mailer, sink, padding(headers)), await beside(mailer, sink, headers))
        for _ in range(TURNS)
    ]
    plain, hostile = (
        Beside(mean(each.rate for each in found), mean(each.answers for each in found))
        for found in zip(*turns, strict=True)
    )
    figure = (
        f"{name}: {hostile.rate:.0f} messages and {hostile.answers:.0f} answers a second,"
        f" {plain.rate:.0f} and {plain.answers:.0f} beside an ordinary header"
    )
    holds = hostile.rate >= LEAST_SHARE * plain.rate
    verdict.check(figure, limit=f"{LEAST_SHARE} of the rate", holds=holds)


async def main(only: str) -> int:
    """Ask with every header, at rest and beside a mailing, and judge; return the exit status."""
    verdict = harness.Verdict()
    settings: dict[str, Any] = {"gateway_rate": RATE, "trusted_proxies": "127.0.0.1"}
    names = [name for name in HEADERS if only in name]
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, harness.SERVE, auth="required", **settings) as mailer,
    ):
        await cost(mailer, {})  # once for all that is made at first
        for name in names:
            await judge_cost(mailer, verdict, name)
        await mailer.add_clients(200_000)
        await mailer.add_mailing()
        await asyncio.sleep(SECONDS)
        await sink.taken()
        await asyncio.sleep(SECONDS)
        print(f"alone: {(await sink.taken()).requests / SECONDS:.0f} messages a second")
        for name in names:
            await judge_rate(mailer, sink, verdict, name)
        repeats = (await sink.taken()).repeats
    verdict.check(f"messages sent twice: {repeats}", limit="0", holds=repeats == 0)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="headers whose names hold this")
    given = parser.parse_args()
    sys.exit(uvloop.run(main(given.only)))
