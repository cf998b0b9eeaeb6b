"""Journal of the soak: injected faults, API calls and what mailer logged, with their times."""

import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from mailer.loop_monitor import Block

GATEWAY_TIMEOUT = 2.0
LEASE = 6.0
RETRY_ATTEMPTS = 8
RETRY_CAP = 3.0
LATENCY, JITTER = 0.05, 0.9
MAX_ANSWER_SECONDS = LATENCY * (1 + JITTER)
"""Seconds after which the gateway has answered every request that it will answer."""
LAG = 0.1
"""Seconds that a process on a busy machine may take to read what was written to it."""
VIOLATION_PART = 200
"""Characters kept of the start and of the end of a long violation."""
END_MARGIN = 0.1
"""Seconds before the end of a mailing from which it starts no more requests."""
REACTION = 1.0
"""Seconds until a change takes effect for requests not yet written (contract, section 5)."""


class Fault(msgspec.Struct):
    """An injected fault, from `began` to `ended`, in seconds of Unix time."""

    name: str
    began: float
    ended: float = math.inf
    worker: str | None = None
    """The affected worker, if the fault affects one worker only."""

    def overlaps(self, start: float, end: float) -> bool:
        """Return whether the fault was present at some moment from `start` to `end`."""
        return self.began <= end and self.ended >= start


class BreakerOpening(msgspec.Struct):
    """A time during which the circuit breaker of a worker was open or half-open."""

    worker: str
    began: float
    seconds: float
    """Seconds for which the breaker is open; then it is half-open until `ended`."""
    ended: float = math.inf


class Call(msgspec.Struct, frozen=True):
    """One API request, sent at `began`, answered at `ended`; `status` 0 means no answer came."""

    mailing_id: int
    action: str
    began: float
    ended: float
    status: int


class Journal:
    """Everything that the soak has done and seen, in order."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.calls: list[Call] = []
        self.violations: list[str] = []
        """Events that the contract does not allow, such as unexpected answers and exits."""
        self.breaker_openings: list[BreakerOpening] = []
        self.uptimes: dict[str, list[float]] = {}
        """By worker: the time when it began to serve, then the time when it stopped."""
        self.warnings: Counter[str] = Counter()
        """Log events of mailer at level `warning` and above."""
        self.blocks: list[tuple[str, Block]] = []
        """Blocks of event loops, each with its worker."""
        self.ending = asyncio.Event()
        """Set when the soak injects no more faults and makes no more calls."""

    @contextlib.contextmanager
    def fault(self, name: str, worker: str | None = None) -> Iterator[None]:
        """Record a fault that lasts as long as the block."""
        fault = Fault(name, time.time(), worker=worker)
        self.faults.append(fault)
        try:
            yield
        finally:
            fault.ended = time.time()

    def add_breaker_event(self, worker: str, at: float, seconds: float | None) -> None:
        """Record that a worker's breaker has opened for `seconds`, or closed (None)."""
        for opening in self.breaker_openings:
            if opening.worker == worker:
                opening.ended = min(opening.ended, at)
        if seconds is not None:
            self.breaker_openings.append(BreakerOpening(worker, at, seconds))

    async def sleep(self, seconds: float) -> bool:
        """Sleep; return False, without waiting any longer, once the soak is ending."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ending.wait(), seconds)
        return not self.ending.is_set()

    def add_violation(self, text: str) -> None:
        """Record an event that the contract does not allow, shortened to one line."""
        at = datetime.now(UTC).strftime("%H:%M:%S.%f")[:-3]
        line = " ".join(text.split())
        if len(line) > 2 * VIOLATION_PART:
            line = f"{line[:VIOLATION_PART]} ... {line[-VIOLATION_PART:]}"
        self.violations.append(f"{at} {line}")

    def fault_counts(self) -> str:
        """Return the number of faults by name, as text."""
        by_name = Counter(fault.name for fault in self.faults)
        return ", ".join(f"{name} {count}" for name, count in sorted(by_name.items()))


class RandomSource(random.Random):
    """A seeded random generator; each part of the soak has its own, so that a run can repeat."""

    def substream(self, name: object) -> "RandomSource":
        """Return the generator of a part; it does not depend on what other parts have drawn."""
        return RandomSource(f"{self.seed_text}/{name}")

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.seed_text = seed
