"""Whether the API keeps the word of its schema, whatever it is sent.

schemathesis sends cases drawn from `/openapi.json` to a real process over a directory and mailings
in every state, with a key and without: examples, edges of every rule, random and wrong data, and
calls that follow each other. All its checks are on (`probing/hooks.py` says how one of them is kept
from false alarms). Limits: no failure, no answer from 500 on, every ledger adds up, and as many
cases as asked for, counted by mailer itself. Works on the empty database of `--database-url`, or on
an embedded one. Takes about four minutes.
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
from mailer.report.verify import differences

CLIENTS, CODES = 300, 20
"""Clients of the directory, and operator codes of those that mailings go to beforehand."""
SHORT_WINDOW: dict[str, Any] = {
    "send_interval_time_start": "03:00",
    "send_interval_time_end": "03:01",
}
"""Of a mailing that is not to be finished."""
NO_WINDOW: dict[str, Any] = {}
STEPS = {"paused": "pause", "cancelled": "cancel"}
FAULTS = ("--reject-rate", "0.2", "--hang-rate", "0.1")
GATEWAY_TIMEOUT = 0.3
SETTLE = 1.0
"""Seconds for mailings to come to their states."""
EXAMPLES = 100
"""Random cases of an operation in a round, at most; examples, edges and sequences come on top."""
PER_EXAMPLE = 30
"""Cases that one more example an operation brings, roughly."""
# what schemathesis learns from refusals is wrong: of "required together with" it takes "required"
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
ANSWERED = re.compile(
    r'^mailer_http_requests_total\{method="(\w+)",route="([^"]*)",status="(\d+)"\} (\S+)$',
    re.MULTILINE,
)
OURS = re.compile("/api/|/health/|none")
"""Routes that cases are sent to; a path that no route knows counts as none."""

Answers = Counter[tuple[str, str, int]]
"""How often an operation, by route and method, was answered with a status."""


async def fill(mailer: harness.Mailer) -> None:
    """Add mailings in every state with messages in every state."""
    lists = {"operator_codes": [f"9{n:02}" for n in range(CODES)]}
    for status in ("finished", "running", "paused", "cancelled"):
        fields = SHORT_WINDOW if status == "running" else NO_WINDOW
        made = await mailer.add_mailing(client_filter=lists, on_unknown="hold", **fields)
        if status in STEPS:
            await mailer.call("POST", f"/mailings/{made['id']}/{STEPS[status]}")
    await mailer.add_mailing(starts_in=86_400, client_filter="vip")
    await asyncio.sleep(SETTLE)


async def answers(mailer: harness.Mailer) -> Answers:
    """Return what mailer has answered so far, by its own count."""
    found = ANSWERED.findall((await mailer.read("/metrics")).decode())
    return Counter(
        {(route, method, int(status)): int(float(n)) for method, route, status, n in found}
    )


def sent(counted: Answers) -> int:
    """Return how many of the answers were to cases."""
    return sum(count for (route, _, _), count in counted.items() if OURS.match(route))


async def probe(mailer: harness.Mailer, folder: Path, examples: int, seed: int) -> bool:
    """Run schemathesis once; return whether all was well.

    `examples` is how many random cases an operation gets.
    """
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG.format(examples=examples, key=mailer.key))
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config)),
        *("run", f"{mailer.address}/openapi.json", "--seed", str(seed), "--no-color"),
        *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
        cwd=folder,
        env=harness.own_environ() | {"PYTHONPATH": str(Path(__file__).parent)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode:
        print(output.decode(), flush=True)
    return process.returncode == 0


async def rounds(mailer: harness.Mailer, folder: Path, cases: int, seed: int) -> int:
    """Send cases until there are enough; return how many rounds failed."""
    failed = 0
    while (missing := cases - sent(await answers(mailer))) > 0:
        await fill(mailer)
        examples = min(EXAMPLES, max(1, missing // PER_EXAMPLE))
        began = time.monotonic()
        failed += not await probe(mailer, folder, examples, seed)
        count = sent(await answers(mailer))
        took = time.monotonic() - began
        print(f"seed {seed}: {took:.0f} s, {count:,} of {cases:,} cases", flush=True)
        seed += 1
    return failed


def tell(counted: Answers) -> None:
    """Print how many cases went to each operation, and their answers."""
    print("  cases  operation, and its answers")
    operations = sorted({(route, method) for route, method, _ in counted if OURS.match(route)})
    for route, method in operations:
        by_status = {s: n for (r, m, s), n in sorted(counted.items()) if (r, m) == (route, method)}
        listed = ", ".join(f"{status}: {n:,}" for status, n in by_status.items())
        print(f"{sum(by_status.values()):7,}  {method} {route}   {listed}")


async def main(cases: int, seed: int, database_url: str) -> int:
    """Send so many cases, and judge; return the exit status."""
    verdict = harness.Verdict()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        gateway = await stack.enter_async_context(harness.sandbox(folder / "log", *FAULTS))
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
        await mailer.add_clients(CLIENTS)
        failed = await rounds(mailer, folder, cases, seed)
        counted = await answers(mailer)
        tell(counted)
        engine = create_engine(mailer.database_url)
        wrong = await differences(engine)
        await engine.dispose()
    verdict.check(
        f"{sent(counted):,} cases", limit=f"at least {cases:,}", holds=sent(counted) >= cases
    )
    verdict.check(f"{failed} rounds with failures", limit="none", holds=not failed)
    broken = sum(
        n for (_, _, status), n in counted.items() if status >= HTTPStatus.INTERNAL_SERVER_ERROR
    )
    verdict.check(f"{broken} answers from 500 on", limit="none", holds=not broken)
    verdict.check(f"{len(wrong)} ledgers that do not add up", limit="none", holds=not wrong)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))  # noqa: S311  # not for secrets
    parser.add_argument("--database-url", default="", help="of an empty database")
    given = parser.parse_args()
    sys.exit(uvloop.run(main(given.cases, given.seed, given.database_url)))
