"""What it costs a request that it comes by a key, and a POST that it may be repeated.

Two processes on one database, one of which asks for keys: the same calls of both, in turns, block
by block, so that a machine's noise falls on all alike; one at a time and twenty at once. Limits, on
the median of the blocks' ratios: 1.6 for a key, 2 for an Idempotency-Key: a key is one statement, a
claim two more and an answer that is kept. Takes about a minute.
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
from mailer.db.embedded import embedded_postgres

BLOCK, TURNS, WARM = 200, 14, 2
"""Calls of a block, blocks of a case, and those of them that do not count."""
KEY_LIMIT, REPEAT_LIMIT = 1.6, 2.0
phones = (f"7917{number:07}" for number in itertools.count(1))

Call = tuple[str, str, dict[str, Any]]
"""A method, a path and what aiohttp is to send with it."""


def get() -> Call:
    """Ask for a client."""
    return "GET", "/api/v1/clients/1", {}


def post() -> Call:
    """Add a client."""
    return "POST", "/api/v1/clients", {"json": {"phone": next(phones)}}


def post_once() -> Call:
    """Add a client, so that it can be repeated."""
    method, path, given = post()
    return method, path, given | {"headers": {"Idempotency-Key": str(uuid.uuid4())}}


async def block(session: aiohttp.ClientSession, at_once: int, make: Callable[[], Call]) -> float:
    """Return the seconds that a block of calls takes."""
    left = iter(range(BLOCK))

    async def work() -> None:
        for _ in left:
            method, path, given = make()
            async with session.request(method, path, **given) as answer:
                await answer.read()
                answer.raise_for_status()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return time.perf_counter() - began


async def ratio(
    at_once: int,
    plain: tuple[aiohttp.ClientSession, Callable[[], Call]],
    dear: tuple[aiohttp.ClientSession, Callable[[], Call]],
) -> tuple[float, float]:
    """Return how many times as long the dear ones take, and the microseconds of a plain one."""
    ratios, times = [], []
    for turn in range(TURNS):
        cases = [plain, dear] if turn % 2 else [dear, plain]
        took = {id(case): await block(case[0], at_once, case[1]) for case in cases}
        ratios.append(took[id(dear)] / took[id(plain)])
        times.append(took[id(plain)] / BLOCK * 1e6)
    return median(ratios[WARM:]), median(times[WARM:])


async def main() -> int:
    """Measure both; return the exit status."""
    verdict = harness.Verdict()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101, S103  # PostgreSQL's user passes through
        async with (
            embedded_postgres(Path(folder)) as url,
            harness.serve("http://127.0.0.1:9/", database_url=url) as free,
            harness.serve(
                "http://127.0.0.1:9/", database_url=url, auth="required", key_rate=0
            ) as asking,
            aiohttp.ClientSession(free.address) as plain,
            aiohttp.ClientSession(asking.address, headers=asking.headers) as by_key,
        ):
            await free.call("POST", "/clients", {"phone": "79160000000"})
            for at_once in (1, 20):
                found, took = await ratio(at_once, (plain, get), (by_key, get))
                verdict.check(
                    f"{at_once:2} at once: GET {took:5.0f} µs, by a key times {found:.2f}",
                    limit=f"{KEY_LIMIT}",
                    holds=found <= KEY_LIMIT,
                )
                found, took = await ratio(at_once, (plain, post), (plain, post_once))
                verdict.check(
                    f"{at_once:2} at once: POST {took:5.0f} µs, repeatable times {found:.2f}",
                    limit=f"{REPEAT_LIMIT}",
                    holds=found <= REPEAT_LIMIT,
                )
    return verdict.status


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.exit(uvloop.run(main()))
