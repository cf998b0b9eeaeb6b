"""Measure how requests with hostile headers affect sending.

A hostile header is one that may be expensive to read, such as a list of thousands of entries. Any
flood of requests slows down sending; a hostile header must not slow it down more than an ordinary
header of the same size. So requests with the one and with the other are measured in turns. None has
valid credentials.

Limits for each hostile header:

- With nothing to send, over one connection: at most 1.5 times the processor time of a response.
- While mailer sends a mailing at a steady rate to a sink, and 120 connections send requests: at
  least 0.8 of the rate with the ordinary header, and no message is sent twice.

Takes ten minutes.
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
SEND_RATE = 100
"""Messages a second."""
MEASURE_SECONDS = 5.0
"""Seconds to measure each rate."""
ROUNDS = 2
"""How often each rate and each processor time is measured."""
SETTLE = 1.0
"""Seconds until all connections are busy."""
MIN_RATE_RATIO = 0.8
"""Smallest rate of messages, compared with an ordinary header."""
MAX_COST_RATIO = 1.5
"""Largest processor time of a response, compared with an ordinary header."""
RESPONSES = 200
"""Responses whose processor time is measured in each round."""
RECONNECT_DELAY = 0.1
"""Seconds until a connection that failed is opened again."""
PATHS = ("/login", "/api/v1/clients", "/static/pages.css", "/nowhere", "/")
RESPONSE_TIMEOUT = 30.0
"""Seconds to wait for a response."""


class HostileConnections:
    """Connections that send a request, wait for the response, and send the next request."""

    def __init__(self, address: str, headers: dict[str, str]) -> None:
        self.responses = 0
        """Responses received so far, over all connections."""
        self._address = urlsplit(address)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._heads = [
            f"GET {path} HTTP/1.1\r\nHost: {self._address.netloc}\r\n{lines}\r\n".encode("latin-1")
            for path in PATHS
        ]

    @asynccontextmanager
    async def sending(self, connections: int) -> AsyncIterator[None]:
        """Send requests over `connections` connections during the block."""
        async with asyncio.TaskGroup() as tasks:
            senders = [tasks.create_task(self._send_requests()) for _ in range(connections)]
            yield
            for sender in senders:
                sender.cancel()

    async def _send_requests(self) -> None:
        while True:
            reader, writer = await asyncio.open_connection(
                self._address.hostname, self._address.port
            )
            try:
                for head in cycle(self._heads):
                    writer.write(head)
                    async with asyncio.timeout(RESPONSE_TIMEOUT):
                        is_kept_alive = await self._read_response(reader)
                    self.responses += 1
                    if not is_kept_alive:
                        break
            except (OSError, EOFError, TimeoutError):
                await asyncio.sleep(RECONNECT_DELAY)
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    @staticmethod
    async def _read_response(reader: asyncio.StreamReader) -> bool:
        """Read a response; return whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"\r\ncontent-length:" not in head:
            return False
        length = int(head.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        return b"\r\nconnection: close" not in head


class Rates(msgspec.Struct, frozen=True):
    """Rates while connections send requests with a header."""

    messages: float
    """Messages sent a second."""
    responses: float
    """Responses to the connections a second."""


async def measure_rates(
    mailer: harness.Mailer, sink: harness.SinkProcess, headers: dict[str, str]
) -> Rates:
    """Measure the rates while `CONNECTIONS` connections send requests with the headers."""
    connections = HostileConnections(mailer.address, headers)
    async with connections.sending(CONNECTIONS):
        await asyncio.sleep(SETTLE)
        await sink.forget_requests()
        responses_before, began = connections.responses, time.monotonic()
        await asyncio.sleep(MEASURE_SECONDS)
        seconds = time.monotonic() - began
        responses = connections.responses - responses_before
        messages = (await sink.read_report()).requests
    return Rates(messages / seconds, responses / seconds)


async def response_cost(mailer: harness.Mailer, headers: dict[str, str]) -> float:
    """Return the processor time of one response to the headers, in milliseconds."""
    connections = HostileConnections(mailer.address, headers)
    async with connections.sending(1):
        while not connections.responses:  # noqa: ASYNC110  # a counter has no event
            await asyncio.sleep(harness.POLL_INTERVAL)
        responses_before, cpu_before = connections.responses, harness.cpu_seconds(mailer.pid)
        while connections.responses < responses_before + RESPONSES:  # noqa: ASYNC110  # likewise
            await asyncio.sleep(harness.POLL_INTERVAL)
        seconds = harness.cpu_seconds(mailer.pid) - cpu_before
        return seconds * 1e3 / (connections.responses - responses_before)


def ordinary_header_as_long_as(headers: dict[str, str]) -> dict[str, str]:
    """Return one ordinary header that is as long as the values of `headers` together."""
    return {"X-Padding": "a" * sum(map(len, headers.values()))}


async def check_cost(mailer: harness.Mailer, verdict: harness.Verdict, name: str) -> None:
    """Check the processor time of a response to the hostile header `name` against its limit."""
    headers = HEADERS[name]
    ordinary = ordinary_header_as_long_as(headers)
    measurements = [
        (await response_cost(mailer, ordinary), await response_cost(mailer, headers))
        for _ in range(ROUNDS)
    ]
    plain, hostile = (mean(costs) for costs in zip(*measurements, strict=True))
    figure = f"{name}: a response takes {hostile:.2f} ms, with an ordinary header {plain:.2f} ms"
    limit = f"at most {MAX_COST_RATIO} times"
    verdict.check(figure, limit=limit, holds=hostile <= MAX_COST_RATIO * plain)


async def check_rate(
    mailer: harness.Mailer, sink: harness.SinkProcess, verdict: harness.Verdict, name: str
) -> None:
    """Check the rate of sending during requests with the hostile header `name`."""
    headers = HEADERS[name]
    ordinary = ordinary_header_as_long_as(headers)
    measurements = [
        (await measure_rates(mailer, sink, ordinary), await measure_rates(mailer, sink, headers))
        for _ in range(ROUNDS)
    ]
    plain, hostile = (
        Rates(mean(rate.messages for rate in rates), mean(rate.responses for rate in rates))
        for rates in zip(*measurements, strict=True)
    )
    figure = (
        f"{name}: {hostile.messages:.0f} messages and {hostile.responses:.0f} responses a second,"
        f" with an ordinary header {plain.messages:.0f} and {plain.responses:.0f}"
    )
    holds = hostile.messages >= MIN_RATE_RATIO * plain.messages
    verdict.check(figure, limit=f"at least {MIN_RATE_RATIO} of the rate", holds=holds)


async def main(only: str) -> int:
    """Measure every header, idle and while sending; return the exit status."""
    verdict = harness.Verdict()
    settings: dict[str, Any] = {"gateway_rate": SEND_RATE, "trusted_proxies": "127.0.0.1"}
    names = [name for name in HEADERS if only in name]
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, harness.SERVE, auth="required", **settings) as mailer,
    ):
        await response_cost(mailer, {})  # to warm up
        for name in names:
            await check_cost(mailer, verdict, name)
        await mailer.create_clients(200_000)
        await mailer.create_mailing()
        await asyncio.sleep(MEASURE_SECONDS)  # until sending is steady
        await sink.forget_requests()
        await asyncio.sleep(MEASURE_SECONDS)
        rate = (await sink.read_report()).requests / MEASURE_SECONDS
        print(f"without connections: {rate:.0f} messages a second")
        for name in names:
            await check_rate(mailer, sink, verdict, name)
        repeats = (await sink.read_report()).repeats
    verdict.check(f"messages sent twice: {repeats}", limit="0", holds=repeats == 0)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only headers whose names contain this text")
    args = parser.parse_args()
    sys.exit(uvloop.run(main(args.only)))
