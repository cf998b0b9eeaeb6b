"""The journal of the soak: injected faults, API calls and what mailer logged, with their times.

Times are Unix times in seconds, by the true clock of this machine. The workers' own wall clock is
wrong, because the soak sets it.
"""

import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Collection, Iterator
from datetime import UTC, datetime

import msgspec

from mailer.loop_monitor import Block

# Settings of the workers, of the same names.
GATEWAY_TIMEOUT = 2.0
LEASE = 6.0
RETRY_ATTEMPTS = 8
RETRY_CAP = 3.0
RECEIPT_WAIT = 20.0

JITTER = 0.9
"""Part by which the latency of a gateway varies at random, up and down."""
LAG = 0.1
"""Seconds that a process on a busy machine may take to read what was written to it. Checks allow it
as a tolerance."""
VIOLATION_PART = 200
"""Characters kept of the start and of the end of the text of a long violation."""
END_MARGIN = 0.1
"""Seconds before the end of a mailing at which mailer aborts its requests and starts no more."""
REACTION = 1.0
"""Seconds that mailer may take until a change of a mailing applies to requests not yet written."""


class Fault(msgspec.Struct):
    """An injected fault, from `began` to `ended`."""

    name: str
    began: float
    ended: float = math.inf
    worker: str | None = None
    """The affected worker, if the fault affects one worker only."""
    gateway: str | None = None
    """The affected gateway, if the fault affects one gateway only."""

    def overlaps(self, start: float, end: float) -> bool:
        """Return whether the fault was present at some moment from `start` to `end`."""
        return self.began <= end and self.ended >= start


class BreakerOpening(msgspec.Struct):
    """A time during which a worker's circuit breaker of a gateway was open or half-open."""

    worker: str
    gateway: str
    began: float
    seconds: float
    """Seconds for which the breaker stays open. After them it is half-open until `ended`."""
    ended: float = math.inf


class Entry(msgspec.Struct, frozen=True):
    """How a gateway takes part, as its `[[gateway]]` in the file says."""

    order: int
    operator_codes: frozenset[str] | None = None
    """None for all codes."""
    weight: int | None = None

    def takes(self, operator_code: str) -> bool:
        """Return whether the gateway takes messages to clients with this operator code."""
        return self.operator_codes is None or operator_code in self.operator_codes


class Configuration(msgspec.Struct):
    """The file of gateways, from `began` to `ended`."""

    entries: dict[str, Entry]
    """By the names of the gateways."""
    began: float
    ended: float = math.inf


class Call(msgspec.Struct, frozen=True):
    """One call of the API, sent at `began` and answered at `ended`."""

    mailing_id: int
    action: str
    """The action on the mailing, such as `create` or `pause`."""
    began: float
    ended: float
    status: int
    """HTTP status; 0 if no answer came."""


class KeywordReply(msgspec.Struct):
    """A client's reply with a stop word or a start word, first sent at `began`."""

    client_id: int
    is_stop: bool
    began: float
    ended: float = math.inf
    """When mailer answered it with 200; infinite if it never did."""


class Receipt(msgspec.Struct, frozen=True):
    """A call of a gateway with a receipt, or with a reply, from its first to its last attempt."""

    message_id: int
    gateway: str
    content: str
    """The status that it reports, of which `failed` stands for `expired` too; or `reply`."""
    gateway_id: str
    """The end of the gateway's id of the message; "" if the receipt has none."""
    started: float
    """Unix time at which the first attempt began; likewise `ended`."""
    ended: float
    attempts: int
    """0 if the gateway stopped before it was due."""
    is_taken: bool
    """Whether mailer answered the last attempt with 200."""
    is_early: bool = False
    """Whether the gateway waited for the first attempt before it answered the request."""

    @property
    def shown(self) -> str:
        """The status that it gives to a message."""
        return "undelivered" if self.content == "failed" else self.content


class Journal:
    """Everything that the soak has done, and what mailer answered and logged, in order."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.calls: list[Call] = []
        self.keyword_replies: list[KeywordReply] = []
        self.receipts: list[Receipt] = []
        """Receipts that the soak itself has sent."""
        self.violations: list[str] = []
        """Descriptions of events that mailer's guarantees exclude, such as unexpected answers and
        exits."""
        self.breaker_openings: list[BreakerOpening] = []
        self.configurations: list[Configuration] = []
        self.route_events: list[tuple[float, str]] = []
        """When a worker read the file of gateways, or changed routes, and which worker."""
        self._gateways: dict[str, set[str]] = {}
        """By worker: the gateways that it uses, as far as it has logged that."""
        self.uptimes: dict[str, list[float]] = {}
        """By worker: the time at which it began to serve, and the time at which it stopped, if it
        did."""
        self.warnings: Counter[str] = Counter()
        """Log events of mailer at level `warning` and above."""
        self.blocks: list[tuple[str, Block]] = []
        """Blocks of event loops, each with the name of its worker."""
        self.ending = asyncio.Event()
        """Set at the end of the soak, when no more faults are injected and no more calls made."""

    @contextlib.contextmanager
    def fault(
        self, name: str, worker: str | None = None, gateway: str | None = None
    ) -> Iterator[None]:
        """Record a fault that lasts as long as the block."""
        fault = Fault(name, time.time(), worker=worker, gateway=gateway)
        self.faults.append(fault)
        try:
            yield
        finally:
            fault.ended = time.time()

    def add_configuration(self, entries: dict[str, Entry]) -> None:
        """Record that the file of gateways is replaced now."""
        now = time.time()
        if self.configurations:
            self.configurations[-1].ended = now
        self.configurations.append(Configuration(entries, now))

    def extend_configurations(self, since: float, until: float) -> None:
        """Record that a worker, which started at `since`, used the file of that time up to `until`.

        The worker that starts last decides for all, also if the file has been replaced meanwhile.
        """
        for configuration in self.configurations_during(since, until):
            configuration.ended = max(configuration.ended, until)

    def configurations_during(self, start: float, end: float) -> list[Configuration]:
        """Return the configurations that were in force at some moment from `start` to `end`."""
        return [each for each in self.configurations if each.began <= end and each.ended >= start]

    def downtimes(self) -> Iterator[Fault]:
        """Yield the times in which every worker was frozen or did not serve."""
        working: list[tuple[float, float]] = []
        for worker, uptime in self.uptimes.items():
            since = uptime[0]
            for fault in self.faults:
                if fault.worker == worker and fault.name == "mailer frozen":
                    working.append((since, fault.began))
                    since = fault.ended
            working.append((since, uptime[-1] if len(uptime) > 1 else math.inf))
        up_until = 0.0
        for since, until in sorted(working):
            if since > up_until:
                yield Fault("no worker works", up_until, since)
            up_until = max(up_until, until)

    def add_breaker_event(
        self, worker: str, gateway: str, at: float, seconds: float | None
    ) -> None:
        """Record that a worker's breaker opened for `seconds`, or closed if `seconds` is None."""
        self._end_openings(worker, {gateway}, at)
        if seconds is not None:
            self.breaker_openings.append(BreakerOpening(worker, gateway, at, seconds))

    def add_reload(self, worker: str, gateways: Collection[str], at: float) -> None:
        """Record that a worker uses these gateways from now on.

        The breaker of a removed gateway does not count any more. A gateway that is added begins
        with a new one, although the last requests of the old one may have opened that meanwhile.
        """
        self.route_events.append((at, f"{worker} reloaded"))
        kept = self._gateways.get(worker, set(gateways)) & set(gateways)
        self._gateways[worker] = set(gateways)
        changed = {each.gateway for each in self.breaker_openings} - kept
        self._end_openings(worker, changed, at)

    def _end_openings(self, worker: str, gateways: Collection[str], at: float) -> None:
        for opening in self.breaker_openings:
            if opening.worker == worker and opening.gateway in gateways:
                opening.ended = min(opening.ended, at)

    async def sleep(self, seconds: float) -> bool:
        """Sleep for `seconds`, but not beyond the moment when `ending` is set.

        Return whether `ending` is still not set, so that loops can use it as their condition.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ending.wait(), seconds)
        return not self.ending.is_set()

    def add_violation(self, text: str) -> None:
        """Record a violation with its time, shortened to one line."""
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
    """A random generator with a seed.

    Each part of the soak has a generator of its own. So its random choices do not depend on the
    order in which the parts run, and a run with the same seed makes the same choices.
    """

    def substream(self, name: object) -> "RandomSource":
        """Return the generator of the part `name`; its seed is made of this one's and the name."""
        return RandomSource(f"{self.seed_text}/{name}")

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.seed_text = seed
