"""Run the sandbox gateway alone, and print its counts: `mailer gateway`."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TextIO

import msgspec

from mailer.gateway.faults import Faults
from mailer.gateway.sandbox import Counts, SandboxGateway, Taken


async def run_sandbox(  # noqa: PLR0913, PLR0917  # one for each thing the command line gives
    faults: Faults,
    host: str,
    port: int,
    token: str | None,
    log: TextIO | None,
    echo: Callable[[str], None],
) -> None:
    """Serve until cancelled: echo the URL, then once a second what came, and a summary at the end.

    `port` 0 is any free one. `log` gets one line of JSON a request: `id`, `arrived` and `kind` as
    `Taken` has them, and `repeat` and `overlap` where they are true. It is flushed once a second
    and at the end. Raises UnavailableError when it cannot listen there.
    """
    on_taken = None if log is None else partial(_write_row, log)
    sandbox = SandboxGateway(faults, token=token, on_taken=on_taken)
    started = time.monotonic()
    try:
        async with sandbox.run(host, port) as url:
            echo(url)
            await _tell(sandbox, log, echo)
    except asyncio.CancelledError:
        if log is not None:
            log.flush()
        seconds = time.monotonic() - started
        echo(f"stopped after {seconds:,.1f} s: {_sentence(sandbox.counts, 0, seconds)}")
        raise


async def _tell(sandbox: SandboxGateway, log: TextIO | None, echo: Callable[[str], None]) -> None:
    """Echo a line and flush the log after every second in which something was taken."""
    told, at = sandbox.counts, time.monotonic()
    while True:
        await asyncio.sleep(1.0)
        counts, now = sandbox.counts, time.monotonic()
        if counts != told:
            echo(_sentence(counts, told.total, now - at))
            if log is not None:
                log.flush()
        told, at = counts, now


def _sentence(counts: Counts, before: int, seconds: float) -> str:
    rate = (counts.total - before) / seconds
    named = msgspec.structs.asdict(counts).items()
    parts = ", ".join(f"{name} {count:,}" for name, count in named if count) or "nothing"
    return f"{counts.total:,} taken ({rate:,.0f}/s): {parts}"


def _write_row(log: TextIO, taken: Taken) -> None:
    # By hand, since it runs for every request and a kind is a plain word: a third of the time.
    message_id = "null" if taken.id is None else taken.id
    flags = (',"repeat":true' if taken.repeat else "") + (
        ',"overlap":true' if taken.overlap else ""
    )
    log.write(f'{{"id":{message_id},"arrived":{taken.arrived},"kind":"{taken.kind}"{flags}}}\n')
