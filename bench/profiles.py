"""Compare the rate of each shipped profile with that of kind `json`, against the same sink.

mailer's gateway client sends from this process, 50 requests at once, to minimal gateways in one
other process (`profile_sink.py`). For each kind, blocks of 1,000 requests alternate with blocks of
kind `json`, so that the machine's noise affects both alike. The rate of a kind, compared with that
of `json`, is the median ratio of two such blocks; the cost is the same of the processor time.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple

import uvloop

import harness
from mailer.clock import database_clock, elapsed
from mailer.gateway.config import ConfiguredGateway
from mailer.gateway.config_table import GatewayConfig
from mailer.gateway.http import HttpGateway
from mailer.gateway.profile_file import load_profile, shipped_kinds
from mailer.gateway.protocol import Accepted, OutgoingMessage, Request
from mailer.sample_data import TEXT
from mailer.urls import read_gateway_url

CONCURRENCY = 50
BLOCK_SIZE = 1000
"""Requests in a block."""
MIN_RATIO = 0.85
"""Limit of the rate of a kind, compared with kind `json`."""
REQUEST_TIMEOUT = 60.0
"""Seconds until the deadline of a request; never reached."""
CYRILLIC = "Ваш заказ готов. Ждём вас до девяти."


class Block(NamedTuple):
    """What a block of requests took, in seconds."""

    duration: float
    processor_time: float


@asynccontextmanager
async def profile_sink() -> AsyncIterator[dict[str, str]]:
    """Run the sink in its own process; yield the URL of each kind."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("profile_sink.py"))),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    try:
        line = await asyncio.wait_for(process.stdout.readline(), harness.PROCESS_TIMEOUT)
        yield json.loads(line)
    finally:
        await harness.stop(process)


def gateway_of(kind: str, url: str) -> HttpGateway:
    """Return the client of a gateway of this kind at `url`."""
    config = GatewayConfig(
        name=kind,
        kind=kind,
        url=url,
        account="AC0123456789",
        username="mailer",
        password=harness.TOKEN,
        token=harness.TOKEN,
        concurrency=CONCURRENCY,
    )
    return HttpGateway(ConfiguredGateway(config, load_profile(kind), read_gateway_url(url)))


async def measure_block(gateway: HttpGateway, text: str) -> Block:
    """Send a block of requests."""
    numbers = iter(range(1, BLOCK_SIZE + 1))  # the tasks share it: each number is sent once
    now = database_clock.now()

    async def work() -> None:
        for number in numbers:
            message = OutgoingMessage(
                id=number,
                phone=str(79_000_000_000 + number),
                text=text,
                sender="ACME",
                validity=3_600,
                valid_from=now,
            )
            request = Request(message, elapsed() + REQUEST_TIMEOUT)
            outcome = await gateway.send(request)
            assert isinstance(outcome, Accepted), outcome  # noqa: S101  # else the figures say nothing

    start, start_of_processor = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONCURRENCY):
            tasks.create_task(work())
    return Block(time.perf_counter() - start, time.process_time() - start_of_processor)


async def measure(kinds: list[str], rounds: int, text: str) -> dict[str, list[tuple[Block, Block]]]:
    """Return pairs of blocks by kind: of kind `json`, and of that kind."""
    pairs: dict[str, list[tuple[Block, Block]]] = {kind: [] for kind in kinds}
    async with profile_sink() as urls, AsyncExitStack() as stack:
        gateways = {
            kind: await stack.enter_async_context(gateway_of(kind, urls[kind]))
            for kind in {*kinds, "json"}
        }
        for gateway in gateways.values():  # open the connections before the measurement
            await measure_block(gateway, text)
        for round_ in range(rounds):
            for kind in kinds:
                order = ["json", kind] if round_ % 2 else [kind, "json"]
                first, second = [await measure_block(gateways[name], text) for name in order]
                pairs[kind].append((first, second) if round_ % 2 else (second, first))
    return pairs


async def main(kinds: list[str], rounds: int, text: str) -> int:
    """Print the ratio of each kind and its limit; return the exit status."""
    now = datetime.now(UTC)  # there is no database here
    database_clock.sample(elapsed(), now, elapsed())
    verdict = harness.Verdict()
    for kind, pairs in (await measure(kinds, rounds, text)).items():
        rate = BLOCK_SIZE / median(block.duration for _, block in pairs)
        ratio = median(base.duration / block.duration for base, block in pairs)
        cost = median(block.processor_time / base.processor_time for base, block in pairs)
        figure = f"{kind}: {rate:.0f} requests a second, {ratio:.2f} of json (cost {cost:.2f})"
        verdict.check(figure, limit=f"at least {MIN_RATIO:g}", holds=ratio >= MIN_RATIO)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="default: all that are shipped")
    parser.add_argument("--rounds", type=int, default=21, help="blocks of each kind")
    parser.add_argument("--cyrillic", action="store_true", help="send a text that needs UCS-2")
    args = parser.parse_args()
    kinds = args.kinds or [kind for kind in shipped_kinds() if kind != "json"]
    sys.exit(uvloop.run(main(kinds, args.rounds, CYRILLIC if args.cyrillic else TEXT)))
