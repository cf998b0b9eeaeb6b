"""Measure how much an API key slows down a request, and an Idempotency-Key a POST.

Two processes use one database; one of them requires API keys. Both get the same calls, in
alternating blocks, so that the machine's noise affects both alike; one call at a time, and twenty
at once. Limits for the median ratio of the blocks: 1.6 with an API key, which takes one SQL
statement; 2 with an Idempotency-Key, which takes two statements and stores the response. Takes
about a minute.
"""

import argparse
import asyncio
import itertools
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import uvloop

import harness
from mailer.embedded_postgres.cluster import embedded_postgres

BLOCK_SIZE, ROUNDS, WARM_UP_ROUNDS = 200, 14, 2
"""Calls in a block; rounds, each of one block per case; first rounds that are not counted."""
MAX_KEY_RATIO, MAX_IDEMPOTENT_RATIO = 1.6, 2.0
phones = (f"7917{number:07}" for number in itertools.count(1))

Call = tuple[str, str, dict[str, Any]]
"""Method, path and further arguments of aiohttp's `request`."""


def get() -> Call:
    """Return a call that reads a client."""
    return "GET", "/api/v1/clients/1", {}


def post() -> Call:
    """Return a call that creates a client."""
    return "POST", "/api/v1/clients", {"json": {"phone": next(phones)}}


def post_idempotent() -> Call:
    """Return a call that creates a client, with an Idempotency-Key."""
    method, path, arguments = post()
    return method, path, arguments | {"headers": {"Idempotency-Key": str(uuid.uuid4())}}


async def measure_block(
    session: aiohttp.ClientSession, at_once: int, create_call: Callable[[], Call]
) -> float:
    """Return the seconds that a block of calls takes."""
    numbers = iter(range(BLOCK_SIZE))

    async def work() -> None:
        for _ in numbers:
            method, path, arguments = create_call()
            async with session.request(method, path, **arguments) as response:
                await response.read()
                response.raise_for_status()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return time.perf_counter() - began


Case = tuple[aiohttp.ClientSession, Callable[[], Call]]
"""A session, and what makes the calls sent through it."""


async def compare(at_once: int, plain: Case, compared: Case) -> tuple[float, float]:
    """Return the median ratio of `compared` to `plain`, and the microseconds of a plain call."""
    ratios, times = [], []
    for index in range(ROUNDS):
        cases = [plain, compared] if index % 2 else [compared, plain]
        seconds = {id(case): await measure_block(case[0], at_once, case[1]) for case in cases}
        ratios.append(seconds[id(compared)] / seconds[id(plain)])
        times.append(seconds[id(plain)] / BLOCK_SIZE * 1e6)
    return median(ratios[WARM_UP_ROUNDS:]), median(times[WARM_UP_ROUNDS:])


async def main() -> int:
    """Measure both ratios and check their limits; return the exit status."""
    verdict = harness.Verdict()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101, S103  # PostgreSQL's own user must enter it
        async with (
            embedded_postgres(Path(folder)) as url,
            harness.serve("http://127.0.0.1:9/", database_url=url) as without_keys,
            harness.serve(
                "http://127.0.0.1:9/", database_url=url, auth="required", key_rate=0
            ) as with_keys,
            aiohttp.ClientSession(without_keys.address) as plain,
            aiohttp.ClientSession(with_keys.address, headers=with_keys.headers) as by_key,
        ):
            await without_keys.call("POST", "/clients", {"phone": "79160000000"})
            for at_once in (1, 20):
                ratio, plain_us = await compare(at_once, (plain, get), (by_key, get))
                verdict.check(
                    f"{at_once:2} at once: GET {plain_us:5.0f} µs, with an API key x {ratio:.2f}",
                    limit=f"at most {MAX_KEY_RATIO}",
                    holds=ratio <= MAX_KEY_RATIO,
                )
                ratio, plain_us = await compare(at_once, (plain, post), (plain, post_idempotent))
                figure = f"POST {plain_us:5.0f} µs, with an Idempotency-Key x {ratio:.2f}"
                verdict.check(
                    f"{at_once:2} at once: {figure}",
                    limit=f"at most {MAX_IDEMPOTENT_RATIO}",
                    holds=ratio <= MAX_IDEMPOTENT_RATIO,
                )
    return verdict.status


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.exit(uvloop.run(main()))
