"""Run the sandbox gateway alone, and print its counts: the command `mailer sandbox`."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TextIO

import msgspec

from mailer.gateway.faults import Faults
from mailer.gateway.sandbox import NO_OPTIONS, CallOptions, SandboxGateway
from mailer.gateway.sandbox_records import (
    SandboxCall,
    SandboxCallCounts,
    SandboxCounts,
    SandboxRequest,
)


async def run_sandbox(  # noqa: PLR0913, PLR0917  # one parameter for each option of the command
    faults: Faults,
    host: str,
    port: int,
    log: TextIO | None,
    echo: Callable[[str], None],
    kind: str = "json",
    calls: CallOptions = NO_OPTIONS,
    **account: str | None,
) -> None:
    """Serve until cancelled. Echo the URL, then the counts once a second, and a summary at the end.

    `port` 0 selects a free port. `kind`, `calls` and `account` are those of `SandboxGateway`.
    `echo` prints one line. `log` gets one line of JSON for each request, with the fields `id`,
    `arrived` and `kind` of `SandboxRequest`, and with `repeat` and `overlap` if true. It also gets
    one for each call that has ended, see `_write_call`. It is flushed once a second and at the end.
    Raises UnavailableError when it cannot listen there, and InvalidError for an unknown kind or a
    key that it does not use.
    """
    sandbox = SandboxGateway(
        faults,
        kind=kind,
        on_request=None if log is None else partial(_write_row, log),
        calls=calls,
        on_call=None if log is None else partial(_write_call, log),
        **account,
    )
    started = time.monotonic()
    try:
        async with sandbox.run(host, port) as url:
            echo(url)
            if kind == "telnyx" and sandbox.callback_secret is not None:
                echo(f"callback_secret of mailer, the public key: {sandbox.callback_secret}")
            await _echo_counts(sandbox, log, echo)
    except asyncio.CancelledError:
        if log is not None:
            log.flush()
        seconds = time.monotonic() - started
        summary = _summarize(sandbox, previous_total=0, seconds=seconds)
        echo(f"stopped after {seconds:,.1f} s: {summary}")
        raise


async def _echo_counts(
    sandbox: SandboxGateway, log: TextIO | None, echo: Callable[[str], None]
) -> None:
    """Echo a line and flush the log after every second in which requests were counted."""
    previous, previous_at = (sandbox.counts, sandbox.call_counts), time.monotonic()
    while True:
        await asyncio.sleep(1.0)
        counts, now = (sandbox.counts, sandbox.call_counts), time.monotonic()
        if counts != previous:
            echo(_summarize(sandbox, previous[0].total, now - previous_at))
            if log is not None:
                log.flush()
        previous, previous_at = counts, now


def _summarize(sandbox: SandboxGateway, previous_total: int, seconds: float) -> str:
    """Return the counts as a line of text.

    It contains the rate of requests since the total was `previous_total`, `seconds` ago.
    """
    total = sandbox.counts.total
    rate = (total - previous_total) / seconds
    calls = _list_counts(sandbox.call_counts)
    requests = f"{total:,} requests ({rate:,.0f}/s): {_list_counts(sandbox.counts) or 'none'}"
    return f"{requests}; calls: {calls}" if calls else requests


def _list_counts(counts: SandboxCounts | SandboxCallCounts) -> str:
    by_name = msgspec.structs.asdict(counts).items()
    return ", ".join(f"{name} {count:,}" for name, count in by_name if count)


def _write_row(log: TextIO, record: SandboxRequest) -> None:
    # Without a JSON encoder, because this runs for every request and takes a third of the time so.
    # A kind is a plain word and needs no escapes.
    known_id = record.id
    message_id = "null" if known_id is None else known_id
    flags = (',"repeat":true' if record.repeat else "") + (
        ',"overlap":true' if record.overlap else ""
    )
    log.write(f'{{"id":{message_id},"arrived":{record.arrived},"kind":"{record.kind}"{flags}}}\n')


def _write_call(log: TextIO, call: SandboxCall) -> None:
    """Write a call that has ended: a receipt with its `status`, or a reply.

    `id` is mailer's id of the message, or null; `gateway_id` ends the id that the gateway gave.
    `answer` is the status of the last response, or null, and `taken` whether it was the one that
    the provider expects. `stop`, `repeat` and `early` are there if true, and `part` if the receipt
    is of a part.
    """
    is_reply = call.content == "reply"
    row: dict[str, object] = {
        "id": call.message_id,
        "kind": "reply" if is_reply else "receipt",
        "status": None if is_reply else call.content,
        "gateway_id": str(call.new_id),
        "part": call.part,
        "started": call.started,
        "ended": call.ended,
        "attempts": call.attempts,
        "answer": call.status,
        "taken": call.is_taken,
        "stop": call.is_stop or None,
        "repeat": call.is_repeat or None,
        "early": call.is_early or None,
    }
    always = {"id", "answer"}
    kept = {name: value for name, value in row.items() if value is not None or name in always}
    log.write(msgspec.json.encode(kept).decode() + "\n")
