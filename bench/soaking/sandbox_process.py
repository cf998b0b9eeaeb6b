"""A sandbox gateway in a process of its own, for the soak. It prints its URL when it serves.

The only argument is `SandboxOptions` as JSON. From SIGUSR1 to SIGUSR2 its account cannot send.
SIGTERM stops it; it aborts open requests and completes its log.
"""

import asyncio
import math
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec
import uvloop

from mailer.gateway.protocol import AccountTrouble
from mailer.gateway.sandbox import (
    CallOptions,
    Faults,
    SandboxCall,
    SandboxGateway,
    SandboxRequest,
)


class SandboxOptions(msgspec.Struct):
    """What a sandbox gateway does; the fields have the meaning of those of `SandboxGateway`."""

    kind: str
    account: dict[str, str]
    port: int
    faults: Faults
    trouble: AccountTrouble
    """Why the account cannot send after SIGUSR1."""
    calls: CallOptions
    log: str
    """Path of the file with one line of JSON for each request, and for each call to mailer."""


async def serve(options: SandboxOptions, log: BinaryIO) -> None:
    """Serve until SIGTERM."""

    def write_row(request: SandboxRequest) -> None:
        row = {"id": request.id, "arrived": request.arrived, "kind": request.kind}
        log.write(msgspec.json.encode(row | {"overlap": request.overlap}) + b"\n")

    def write_call(call: SandboxCall) -> None:
        log.write(msgspec.json.encode(msgspec.structs.asdict(call) | {"kind": "call"}) + b"\n")

    sandbox = SandboxGateway(
        options.faults,
        kind=options.kind,
        on_request=write_row,
        calls=options.calls,
        on_call=write_call,
        **options.account,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_signal_handler(signal.SIGUSR1, sandbox.fail_for, math.inf, options.trouble)
    loop.add_signal_handler(signal.SIGUSR2, sandbox.fail_for, 0.0)
    async with sandbox.run(port=options.port) as url:
        print(url, flush=True)
        await stopping.wait()


def main(options: SandboxOptions) -> None:
    """Serve, and write the log."""
    with Path(options.log).open("wb") as log:
        uvloop.run(serve(options, log))


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=SandboxOptions))
