"""What was done to the system and asked of it, and when: what the soak's checks go by."""

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
LONGEST_ANSWER = LATENCY * (1 + JITTER)
"""Seconds after which the gateway has answered whatever it answers at all."""
LAG = 0.1
"""Seconds that a process of a busy machine may take to read what was written to it."""
END_MARGIN = 0.1
"""Seconds before its end in which a mailing sends nothing more."""
COMPLAINT = 200
"""Characters that are kept of the start and of the end of a complaint."""
REACTION = 1.0
"""Seconds within which a change has to act on what is not on the wire yet (contract, section 5)."""


class Trouble(msgspec.Struct):
    """Something broken on purpose, from `began` to `ended`, seconds of Unix time."""

    what: str
    began: float
    ended: float = math.inf
    life: str | None = None
    """The run of mailer that it happened to, where it was one alone."""

    def touches(self, start: float, end: float) -> bool:
        """Whether it was going on at some moment from `start` to `end`."""
        return self.began <= end and self.ended >= start


class Opening(msgspec.Struct):
    """A time that a run of mailer held back, its circuit breaker being open or half-open."""

    life: str
    began: float
    seconds: float
    """How long it was to send nothing at all."""
    ended: float = math.inf


class Call(msgspec.Struct, frozen=True):
    """One request to the API, sent at `began`, answered (or lost: `status` 0) at `ended`."""

    mailing_id: int
    action: str
    began: float
    ended: float
    status: int


class Journal:
    """Everything that the soak has done, in order."""

    def __init__(self) -> None:
        self.troubles: list[Trouble] = []
        self.calls: list[Call] = []
        self.complaints: list[str] = []
        """What nobody may see: answers that the contract does not know, processes that died."""
        self.openings: list[Opening] = []
        self.uptimes: dict[str, list[float]] = {}
        """When each run of mailer began to serve, and when it ceased."""
        self.events: Counter[str] = Counter()
        """What mailer logged at level `warning` and above."""
        self.blocks: list[tuple[str, Block]] = []
        """Blocks of the event loop of a run of mailer."""
        self.over = asyncio.Event()
        """Set when nothing more is to be broken or asked."""

    @contextlib.contextmanager
    def trouble(self, what: str, life: str | None = None) -> Iterator[None]:
        """Note what is broken while the block lasts."""
        trouble = Trouble(what, time.time(), life=life)
        self.troubles.append(trouble)
        try:
            yield
        finally:
            trouble.ended = time.time()

    def breaker(self, life: str, at: float, seconds: float | None) -> None:
        """Note that a run's breaker has opened for that many seconds, or closed (None)."""
        for opening in self.openings:
            if opening.life == life:
                opening.ended = min(opening.ended, at)
        if seconds is not None:
            self.openings.append(Opening(life, at, seconds))

    async def rest(self, seconds: float) -> bool:
        """Wait; False, and at once, when the soak is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.over.wait(), seconds)
        return not self.over.is_set()

    def complain(self, of: str) -> None:
        """Note what nobody may see, on one line."""
        at = datetime.now(UTC).strftime("%H:%M:%S.%f")[:-3]
        line = " ".join(of.split())
        if len(line) > 2 * COMPLAINT:
            line = f"{line[:COMPLAINT]} ... {line[-COMPLAINT:]}"
        self.complaints.append(f"{at} {line}")

    def counts(self) -> str:
        """Return how often each thing was broken, for a line of text."""
        by_kind = Counter(trouble.what for trouble in self.troubles)
        return ", ".join(f"{what} {count}" for what, count in sorted(by_kind.items()))


class Draw(random.Random):
    """A seeded source of choices; a part of the soak has one of its own, so that it can repeat."""

    def part(self, name: object) -> "Draw":
        """Return the source of a part, whatever the other parts have drawn."""
        return Draw(f"{self.seed_text}/{name}")

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.seed_text = seed
