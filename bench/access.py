"""Measure how much an API key slows down a request, and an Idempotency-Key a POST.

Two mailer processes use one database; one of them requires API keys. Both get the same calls, in
alternating blocks, so that the machine's noise affects both alike. This is measured twice: with one
call at a time, and with twenty at once.

Limits for the median ratio of the blocks: 1.6 with an API key, which costs one SQL statement more;
2 with an Idempotency-Key, which costs two statements more and stores the response. Takes about a
minute.
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
from typing import Any, NamedTuple

import aiohttp
import uvloop

import harness
from mailer.embedded_postgres.cluster import embedded_postgres

BLOCK_SIZE = 200
"""Calls in a block."""
ROUNDS = 14
"""Rounds; each measures one block of each of the two compared cases."""
WARM_UP_ROUNDS = 2
"""First rounds, which do not count."""
MAX_KEY_RATIO, MAX_IDEMPOTENT_RATIO = 1.6, 2.0
UNUSED_GATEWAY = "http://127.0.0.1:9/"
"""mailer sends nothing in this benchmark."""
new_phones = (f"7917{number:07}" for number in itertools.count(1))


class Call(NamedTuple):
    """An API call: the arguments of aiohttp's `request`."""

    method: str
    path: str
    options: dict[str, Any]


def get() -> Call:
    """Return a call that reads a client."""
    return Call("GET", "/api/v1/clients/1", {})


def post() -> Call:
    """Return a call that creates a client."""
    return Call("POST", "/api/v1/clients", {"json": {"phone": next(new_phones)}})


def post_idempotent() -> Call:
    """Return a call that creates a client, with an Idempotency-Key."""
    call = post()
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    return call._replace(options=call.options | {"headers": headers})


class Case(NamedTuple):
    """What is measured: a kind of call, sent through a session."""

    session: aiohttp.ClientSession
    create_call: Callable[[], Call]


async def measure_block(case: Case, at_once: int) -> float:
    """Send a block of calls, `at_once` of them at the same time; return the seconds it takes."""
    numbers = iter(range(BLOCK_SIZE))  # the tasks share it: together they send `BLOCK_SIZE` calls

    async def work() -> None:
        for _ in numbers:
            call = case.create_call()
            async with case.session.request(call.method, call.path, **call.options) as response:
                await response.read()
                response.raise_for_status()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return time.perf_counter() - began


class Comparison(NamedTuple):
    """Medians over the rounds."""

    ratio: float
    """Time of the compared case, divided by that of the plain case."""
    plain_us: float
    """Microseconds of a call of the plain case."""


async def compare(at_once: int, plain: Case, compared: Case) -> Comparison:
    """Measure both cases in turns, with `at_once` calls at the same time."""
    ratios, plain_times = [], []
    for index in range(ROUNDS):
        if index % 2:
            plain_seconds = await measure_block(plain, at_once)
            compared_seconds = await measure_block(compared, at_once)
        else:
            compared_seconds = await measure_block(compared, at_once)
            plain_seconds = await measure_block(plain, at_once)
        ratios.append(compared_seconds / plain_seconds)
        plain_times.append(plain_seconds / BLOCK_SIZE * 1e6)
    return Comparison(median(ratios[WARM_UP_ROUNDS:]), median(plain_times[WARM_UP_ROUNDS:]))


async def main() -> int:
    """Measure both ratios and check their limits; return the exit status."""
    verdict = harness.Verdict()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101, S103  # PostgreSQL's own user must enter it
        async with (
            embedded_postgres(Path(folder)) as url,
            harness.serve(UNUSED_GATEWAY, database_url=url) as open_mailer,
            harness.serve(
                UNUSED_GATEWAY, database_url=url, auth="required", key_rate=0
            ) as mailer_with_keys,
            aiohttp.ClientSession(open_mailer.address) as without_key,
            aiohttp.ClientSession(
                mailer_with_keys.address, headers=mailer_with_keys.headers
            ) as with_key,
        ):
            await open_mailer.call("POST", "/clients", {"phone": "79160000000"})  # for `get`
            for at_once in (1, 20):
                ratio, plain_us = await compare(
                    at_once, plain=Case(without_key, get), compared=Case(with_key, get)
                )
                verdict.check(
                    f"{at_once:2} at once: GET {plain_us:5.0f} µs, with an API key x {ratio:.2f}",
                    limit=f"at most {MAX_KEY_RATIO}",
                    holds=ratio <= MAX_KEY_RATIO,
                )
                ratio, plain_us = await compare(
                    at_once,
                    plain=Case(without_key, post),
                    compared=Case(without_key, post_idempotent),
                )
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
