"""The sandbox gateways of the soak, each a process that can be stopped, frozen and started again.

Their kinds differ, but the requests of each have mailer's id of the message, by which the record
matches requests to messages.
"""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

import harness
from mailer.gateway.protocol import AccountTrouble
from mailer.gateway.sandbox import CallOptions, Faults
from soaking.journal import JITTER, RECEIPT_WAIT, RandomSource
from soaking.sandbox_process import SandboxOptions

PORTS = range(20_000, 30_000)
"""Ports for the gateways and the forwarder. The system does not use them for outgoing connections,
so the port of a gateway stays free while it is down."""
PROCESS = str(Path(__file__).with_name("sandbox_process.py"))


CALLBACK_SECRET = "secret-of-the-soak"  # noqa: S105  # of simulated gateways
"""It is in the URLs for receipts of `json`, and signs those of `vonage`."""


class Kind(NamedTuple):
    """A kind of gateway, which is also the name of the only gateway of this kind."""

    name: str
    account: dict[str, str]
    trouble: AccountTrouble
    """What the gateway says while its account cannot send."""
    has_receipts: bool
    """Whether the gateway sends receipts; else an accepted message counts as delivered."""

    @property
    def callback_keys(self) -> dict[str, object]:
        """What the configuration says about receipts."""
        return {"callback_secret": CALLBACK_SECRET} if self.has_receipts else {"receipts": False}


KINDS = (
    Kind("json", {"token": "bench"}, "bad_credentials", has_receipts=True),
    Kind("vonage", {"account": "bench", "token": "bench"}, "no_credit", has_receipts=True),
    Kind("infobip", {"token": "bench"}, "no_credit", has_receipts=False),
)
GATEWAYS = tuple(kind.name for kind in KINDS)
"""The names of the gateways."""
USUAL = Faults(
    latency=0.05,
    jitter=JITTER,
    error_rate=0.03,
    reject_rate=0.02,
    malformed_rate=0.03,
    hang_rate=0.01,
    reset_rate=0.03,
    rate_limit=190,
)
"""Latency in seconds, shares of faults, and requests a second of a gateway."""
SLOW = msgspec.structs.replace(USUAL, latency=0.4)
WRONG = msgspec.structs.replace(USUAL, error_rate=0.3, malformed_rate=0.3)
BEHAVIOURS = (USUAL, USUAL, SLOW, WRONG)
"""A gateway that starts chooses one of these."""
CALLS = CallOptions(
    callback_secret=CALLBACK_SECRET,
    receipt_delay=2.0,
    receipt_failed=0.15,
    receipt_loss=0.1,
    receipt_repeat=0.2,
    receipt_disorder=0.2,
    receipt_early=0.1,
    reply_share=0.03,
)
"""Seconds until a receipt, and shares of what happens to receipts. No reply has a stop word: the
soak sends those itself."""
LATE_CALLS = msgspec.structs.replace(CALLS, receipt_delay=0.6 * RECEIPT_WAIT)
"""Some receipts come after `RECEIPT_WAIT`."""


class SandboxLog(NamedTuple):
    """The log of a gateway, from a start to the next."""

    gateway: str
    path: Path
    latency: float
    """Mean seconds until the gateway responds."""


class Sandbox:
    """A sandbox gateway, which can be stopped and started again on the same port.

    Each start writes a new log into `folder`.
    """

    def __init__(self, kind: Kind, port: int, folder: Path, rng: RandomSource) -> None:
        self.name = kind.name
        self.url = ""
        """The URL of the gateway; it stays the same while the gateway is down."""
        self.logs: list[SandboxLog] = []
        self._kind = kind
        self._port = port
        self._folder = folder
        self._rng = rng
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the gateway; it has no memory of earlier requests."""
        faults = self._rng.choice(BEHAVIOURS) if self.logs else USUAL
        log = self._folder / f"{self.name}-{len(self.logs)}.jsonl"
        options = SandboxOptions(
            kind=self._kind.name,
            account=self._kind.account,
            port=self._port,
            faults=msgspec.structs.replace(faults, seed=self._rng.randrange(10**6)),
            trouble=self._kind.trouble,
            calls=self._rng.choice((CALLS, CALLS, LATE_CALLS)),
            log=str(log),
        )
        self._process = await asyncio.create_subprocess_exec(
            # -P: do not import from this folder, where `operator.py` hides Python's `operator`
            *(sys.executable, "-P", PROCESS, msgspec.json.encode(options).decode()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self.logs.append(SandboxLog(self.name, log, faults.latency))
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe
        line = await asyncio.wait_for(self._process.stdout.readline(), harness.PROCESS_TIMEOUT)
        url = line.decode().strip()
        if not url or self.url not in {"", url}:
            raise RuntimeError(f"the sandbox gateway {self.name} did not start")
        self.url = url

    async def stop(self) -> None:
        """Stop the gateway, which aborts open requests and completes its log."""
        if self._process is not None and self._process.returncode is None:
            self.signal(signal.SIGCONT)  # a frozen process would not react to the stop
            await harness.stop(self._process)

    def signal(self, signal_number: signal.Signals) -> None:
        """Send a signal to the gateway if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal_number)


@contextlib.asynccontextmanager
async def sandboxes(folder: Path, rng: RandomSource) -> AsyncIterator[list[Sandbox]]:
    """Yield a running sandbox gateway of each kind; stop them at the end."""
    gateways = [
        Sandbox(kind, port, folder, rng.substream(kind.name))
        for kind, port in zip(KINDS, free_ports(), strict=False)
    ]
    try:
        for gateway in gateways:
            await gateway.start()
        yield gateways
    finally:
        for gateway in gateways:
            await gateway.stop()


def free_ports() -> Iterator[int]:
    """Yield the free ports of `PORTS`."""
    for port in PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            yield port
