"""Check whether the API conforms to its OpenAPI schema for all inputs.

The program schemathesis generates requests, called cases, from `/openapi.json`: examples, boundary
values of every rule, random and invalid data, and sequences of calls. It sends them with an API key
and without to a real process that has clients, and mailings in every status. It runs several times
(rounds), each time with another seed, until enough cases were sent.

All its checks are used except `positive_data_acceptance`. That check fails when data that the
schema allows is rejected, but some of mailer's rules cannot be expressed by a schema. So
`probing/hooks.py` adds a check of its own instead, which ignores rejections by these rules.

Limits: no failed check, no status of 500 or above, the counts of every mailing equal its rows, and
at least the requested number of cases, as counted by mailer's own metrics. The benchmark works on
the empty database of `--database-url`, or else on an embedded one. Takes about four minutes.
"""

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

import uvloop

import harness
from mailer.db.engine import create_engine
from mailer.statistics.verify import find_differences

CLIENTS = 300
"""Clients in the directory."""
AUDIENCE_CODES = 20
"""Operator codes in the filter of the mailings that are sent."""
SHORT_WINDOW: dict[str, Any] = {
    "send_interval_time_start": "03:00",
    "send_interval_time_end": "03:01",
}
"""A sending window of a minute a day, for a mailing that must stay running."""
NO_WINDOW: dict[str, Any] = {}
ACTIONS = {"paused": "pause", "cancelled": "cancel"}
"""The API action that brings a mailing into a status."""
GATEWAY_FAULTS = ("--reject-rate", "0.2", "--hang-rate", "0.1")
"""Options of the sandbox gateway: it rejects a fifth of the messages, and answers a tenth never."""
GATEWAY_TIMEOUT = 0.3
"""Seconds that mailer waits for the gateway's answer."""
SETTLE = 1.0
"""Seconds until the mailings have reached their statuses."""
MAX_EXAMPLES = 100
"""Random cases for each operation in a round; examples, boundary values and sequences are added."""
CASES_PER_EXAMPLE = 30
"""How many cases a round has, roughly, for each random case of an operation."""
CHECKS_PASSED, CHECKS_FAILED = 0, 1
"""Exit statuses of schemathesis; with any other one it could not do its job."""
# The configuration of schemathesis. error-feedback is off, because it learns from error messages:
# it would read "is required together with" as "is required".
CONFIG = """
hooks = "probing.hooks"
continue-on-failure = true
warnings = false
[auth.openapi]
key = {{ bearer = "{key}" }}
[generation]
max-examples = {examples}
database = "none"
[phases.fuzzing.error-feedback]
enabled = false
"""
REQUESTS_METRIC = re.compile(
    r'^mailer_http_requests_total\{method="(\w+)",route="([^"]*)",status="(\d+)"\} (\S+)$',
    re.MULTILINE,
)
TESTED_ROUTE = re.compile("/api/|/health/|none")
"""Routes that get cases; the metrics have the route `none` for unknown paths."""

ResponseCounts = Counter[tuple[str, str, int]]
"""Number of responses by route, method and status."""


async def create_mailings(mailer: harness.Mailer) -> None:
    """Create mailings in every status, with messages in every status.

    The last one, still to start, has the other form of a filter: a string of codes and tags.
    """
    client_filter = {"operator_codes": [f"9{n:02}" for n in range(AUDIENCE_CODES)]}
    for status in ("finished", "running", "paused", "cancelled"):
        window = SHORT_WINDOW if status == "running" else NO_WINDOW
        mailing = await mailer.create_mailing(
            client_filter=client_filter, on_unknown="hold", **window
        )
        if status in ACTIONS:
            await mailer.call("POST", f"/mailings/{mailing['id']}/{ACTIONS[status]}")
    await mailer.create_mailing(starts_in=86_400, client_filter="vip")
    await asyncio.sleep(SETTLE)


async def read_counts(mailer: harness.Mailer) -> ResponseCounts:
    """Read the number of mailer's responses so far from its metrics."""
    samples = REQUESTS_METRIC.findall((await mailer.get("/metrics")).decode())
    return Counter(
        {(route, method, int(status)): int(float(n)) for method, route, status, n in samples}
    )


def count_cases(counts: ResponseCounts) -> int:
    """Return the number of cases, that is, of responses by the routes that get cases.

    The few calls of `create_mailings` are counted too.
    """
    return sum(count for (route, _, _), count in counts.items() if TESTED_ROUTE.match(route))


async def run_schemathesis(mailer: harness.Mailer, folder: Path, examples: int, seed: int) -> bool:
    """Run schemathesis once, with `examples` random cases for each operation.

    Return whether all checks passed; if not, print its output. Raises `RuntimeError` if it could
    not do its job.
    """
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG.format(examples=examples, key=mailer.key))
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config)),
        *("run", f"{mailer.address}/openapi.json", "--seed", str(seed), "--no-color"),
        *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
        cwd=folder,
        env=harness.clean_environ() | {"PYTHONPATH": str(Path(__file__).parent)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode != CHECKS_PASSED:
        print(output.decode(), flush=True)
    if process.returncode not in (CHECKS_PASSED, CHECKS_FAILED):
        message = f"schemathesis ended with exit status {process.returncode}"
        raise RuntimeError(message)
    return process.returncode == CHECKS_PASSED


async def run_rounds(mailer: harness.Mailer, folder: Path, cases: int, seed: int) -> int:
    """Run rounds until `cases` cases were sent; return the number of failed rounds.

    Raises `RuntimeError` after a round in which schemathesis sent nothing: the next one would not
    send anything either.
    """
    failed = 0
    while (missing := cases - count_cases(await read_counts(mailer))) > 0:
        await create_mailings(mailer)
        count_before = count_cases(await read_counts(mailer))
        examples = min(MAX_EXAMPLES, max(1, missing // CASES_PER_EXAMPLE))
        began = time.monotonic()
        failed += not await run_schemathesis(mailer, folder, examples, seed)
        count = count_cases(await read_counts(mailer))
        if count == count_before:
            raise RuntimeError("schemathesis sent no case")
        seconds = time.monotonic() - began
        print(f"seed {seed}: {seconds:.0f} s, {count:,} of {cases:,} cases", flush=True)
        seed += 1
    return failed


def print_counts(counts: ResponseCounts) -> None:
    """Print the number of cases of each operation, by status."""
    print("  cases  operation, and responses by status")
    operations = sorted(
        {(route, method) for route, method, _ in counts if TESTED_ROUTE.match(route)}
    )
    for route, method in operations:
        by_status = {
            status: count
            for (*operation, status), count in sorted(counts.items())
            if operation == [route, method]
        }
        listed = ", ".join(f"{status}: {count:,}" for status, count in by_status.items())
        print(f"{sum(by_status.values()):7,}  {method} {route}   {listed}")


async def main(cases: int, seed: int, database_url: str) -> int:
    """Send `cases` cases and check the limits; return the exit status."""
    verdict = harness.Verdict()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        gateway = await stack.enter_async_context(harness.sandbox(folder / "log", *GATEWAY_FAULTS))
        settings = {"database_url": database_url} if database_url else {}
        mailer = await stack.enter_async_context(
            harness.serve(
                gateway.url,
                auth="required",
                key_rate=0,
                gateway_timeout=GATEWAY_TIMEOUT,
                **settings,
            )
        )
        await mailer.create_clients(CLIENTS)
        failed_rounds = await run_rounds(mailer, folder, cases, seed)
        counts = await read_counts(mailer)
        print_counts(counts)
        engine = create_engine(mailer.database_url)
        wrong_counts = await find_differences(engine)
        await engine.dispose()
    sent = count_cases(counts)
    verdict.check(f"{sent:,} cases", limit=f"at least {cases:,}", holds=sent >= cases)
    verdict.check(f"{failed_rounds} rounds with failures", limit="none", holds=not failed_rounds)
    errors = sum(
        n for (_, _, status), n in counts.items() if status >= HTTPStatus.INTERNAL_SERVER_ERROR
    )
    verdict.check(f"{errors} responses of 500 or above", limit="none", holds=not errors)
    figure = f"{len(wrong_counts)} counts that differ from the rows"
    verdict.check(figure, limit="none", holds=not wrong_counts)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))  # noqa: S311  # not for secrets
    parser.add_argument("--database-url", default="", help="URL of an empty database")
    args = parser.parse_args()
    sys.exit(uvloop.run(main(args.cases, args.seed, args.database_url)))
