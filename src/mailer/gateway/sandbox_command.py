"""Run the sandbox gateway alone, and print its counts: the command `mailer sandbox`."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TextIO

import msgspec

from mailer.gateway.faults import Faults
from mailer.gateway.sandbox import SandboxGateway
from mailer.gateway.sandbox_records import SandboxCounts, SandboxRequest


async def run_sandbox(  # noqa: PLR0913, PLR0917  # one parameter for each option of the command
    faults: Faults,
    host: str,
    port: int,
    log: TextIO | None,
    echo: Callable[[str], None],
    kind: str = "json",
    **account: str | None,
) -> None:
    """Serve until cancelled. Echo the URL, then the counts once a second, and a summary at the end.

    `port` 0 selects a free port. `kind` and `account` are those of `SandboxGateway`. `echo` prints
    one line. `log` gets one line of JSON for each request, with the fields `id`, `arrived`
    and `kind` of `SandboxRequest`, and with `repeat` and `overlap` if true. It is flushed once a
    second and at the end. Raises UnavailableError when it cannot listen there, and InvalidError for
    an unknown kind or a key that it does not use.
    """
    on_request = None if log is None else partial(_write_row, log)
    sandbox = SandboxGateway(faults, kind=kind, on_request=on_request, **account)
    started = time.monotonic()
    try:
        async with sandbox.run(host, port) as url:
            echo(url)
            await _echo_counts(sandbox, log, echo)
    except asyncio.CancelledError:
        if log is not None:
            log.flush()
        seconds = time.monotonic() - started
        summary = _summarize(sandbox.counts, previous_total=0, seconds=seconds)
        echo(f"stopped after {seconds:,.1f} s: {summary}")
        raise


async def _echo_counts(
    sandbox: SandboxGateway, log: TextIO | None, echo: Callable[[str], None]
) -> None:
    """Echo a line and flush the log after every second in which requests were counted."""
    previous, previous_at = sandbox.counts, time.monotonic()
    while True:
        await asyncio.sleep(1.0)
        counts, now = sandbox.counts, time.monotonic()
        if counts != previous:
            echo(_summarize(counts, previous.total, now - previous_at))
            if log is not None:
                log.flush()
        previous, previous_at = counts, now


def _summarize(counts: SandboxCounts, previous_total: int, seconds: float) -> str:
    """Return the counts as a line of text.

    It contains the rate of requests since the total was `previous_total`, `seconds` ago.
    """
    rate = (counts.total - previous_total) / seconds
    by_name = msgspec.structs.asdict(counts).items()
    parts = ", ".join(f"{name} {count:,}" for name, count in by_name if count) or "none"
    return f"{counts.total:,} requests ({rate:,.0f}/s): {parts}"


def _write_row(log: TextIO, record: SandboxRequest) -> None:
    # Without a JSON encoder, because this runs for every request and takes a third of the time so.
    # A kind is a plain word and needs no escapes.
    known_id = record.id
    message_id = "null" if known_id is None else known_id
    flags = (',"repeat":true' if record.repeat else "") + (
        ',"overlap":true' if record.overlap else ""
    )
    log.write(f'{{"id":{message_id},"arrived":{record.arrived},"kind":"{record.kind}"{flags}}}\n')
