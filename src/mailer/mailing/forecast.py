"""When a mailing will be done, and whom it will not reach: a simulation in which messages flow.

Its rules are those of the dispatcher: mailings share the rate equally, within one the messages that
were due first go first, and what is not sent when its window closes is due when it opens again.
"""

from collections import defaultdict
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from math import ceil, floor
from typing import Literal, TypeVar

import msgspec

from mailer.mailing.stream import NOBODY, Flock, Stream, Turn, flow_at_once
from mailer.mailing.window import DAY, Offsets, Window, offsets_of

HORIZON = timedelta(days=60)
"""How far ahead it is looked: what takes longer is not worth a simulation."""

Reason = Literal["no_window", "no_time"]
Key = TypeVar("Key", bound=Hashable)


class Crowd(msgspec.Struct, frozen=True):
    """Clients of one time zone who are still to be reached."""

    time_zone: str
    clients: int
    due_at: datetime | None = None
    """Not before; None when they wait for nothing but the start and their window."""


class Shortfall(msgspec.Struct, frozen=True):
    """Clients of one time zone who will not be reached."""

    time_zone: str
    clients: int
    reason: Reason
    """`no_window`: it opens at the mailing's end or after; `no_time`: too many for the rate."""
    opens_at: datetime | None = None
    """When the window opens, if that is too late."""


class Forecast(msgspec.Struct, frozen=True):
    """What is to be expected of a mailing: clients = reached + missed + waiting."""

    clients: int
    """Those still to be reached now."""
    rate: float | None
    """Messages a second for all mailings together, by which it was reckoned; None: any number."""
    done_at: datetime | None
    """When the last is reached; None when somebody is missed, or it is too far ahead."""
    missed: int
    shortfalls: tuple[Shortfall, ...]
    """Who is missed and why, most first."""
    until: datetime | None = None
    """How far it was looked, if the mailing then still goes on."""
    waiting: int = 0
    """Those not reached until then."""

    @property
    def reached(self) -> int:
        """Those who are reached as far as was looked."""
        return self.clients - self.missed - self.waiting


def forecast(  # noqa: PLR0913  # a mailing's plan, and what it meets
    crowds: Iterable[Crowd],
    *,
    start: datetime,
    end: datetime,
    window: Window | None,
    at: datetime,
    rate: float | None = None,
    others: Iterable[int] = (),
) -> Generator[None, None, Forecast]:
    """Return what is to be expected, from `at` on, of a mailing for `crowds`.

    Yields after each step, none of which takes longer than a millisecond or so: hundreds of zones
    take a tenth of a second together.

    `rate` is in messages a second for all mailings together, None when it is not known: then the
    window alone decides. `others` are the messages that each of the other mailings under way has
    waiting; they take their part until they run empty, as if all of them were due.
    """
    span = Span(start.astimezone(UTC), end.astimezone(UTC), window, at.astimezone(UTC))
    crowds = [crowd for crowd in crowds if crowd.clients > 0]
    flocks = yield from _flocks(crowds, span)
    if rate is None:
        last = flow_at_once(flocks)
    else:
        last = yield from Stream(rate, others).carry(list(flocks))
    shortfalls, waiting = yield from _remainder(flocks, span)
    missed = sum(shortfall.clients for shortfall in shortfalls)
    done_at = None
    if not missed and not waiting:
        done_at = min(max(span.since, span.at + timedelta(seconds=last)), span.end)
    return Forecast(
        clients=sum(crowd.clients for crowd in crowds),
        rate=rate,
        done_at=done_at,
        missed=missed,
        shortfalls=shortfalls,
        until=span.until if waiting else None,
        waiting=waiting,
    )


# ---- when messages may flow ------------------------------------------------------------------


class Span(msgspec.Struct, frozen=True):
    """When a mailing may be sent, and the moment at which that is asked, in UTC."""

    start: datetime
    end: datetime
    window: Window | None
    at: datetime

    @property
    def since(self) -> datetime:
        """From when on it may be sent."""
        return max(self.start, self.at)

    @property
    def until(self) -> datetime:
        """How far it is looked ahead."""
        return min(self.end, self.since + HORIZON)

    def offsets(self, time_zone: str) -> Offsets:
        """Return what makes zones alike, from when a window that is open now may have opened."""
        first = max(self.start, self.at - DAY)
        if self.window is None:
            return ((first, timedelta()),)
        return offsets_of(time_zone, first, self.until)

    def turns(self, offsets: Offsets, due_at: datetime | None) -> Iterator[Turn]:
        """Yield when clients whose clocks have these offsets may be sent to, in order."""
        spells: Iterable[tuple[datetime, datetime]] = [(self.start, self.until)]
        if self.window is not None:
            spells = self.window.spells(offsets, self.until)
        earliest = max(self.since, due_at or self.since)
        for opens, closes in spells:
            if closes > earliest:
                due = max(opens, due_at or opens)
                moments = (due, max(opens, earliest), closes)
                yield Turn(*((moment - self.at).total_seconds() for moment in moments))

    def opens_too_late(self, crowd: Crowd) -> datetime | None:
        """Return when the window opens for a crowd, if that is at the end or later."""
        if self.window is None or self.since >= self.end:
            return None
        earliest = max(self.since, crowd.due_at or self.since)
        opens_at = self.window.next_opening(crowd.time_zone, earliest)
        return opens_at if opens_at >= self.end else None


def _flocks(crowds: Iterable[Crowd], span: Span) -> Generator[None, None, dict[Flock, list[Crowd]]]:
    """Return what flows as one, with the crowds that it is made of."""
    alike = defaultdict(list)
    for crowd in crowds:
        alike[span.offsets(crowd.time_zone), crowd.due_at].append(crowd)
        yield
    flocks = {}
    for key, found in alike.items():
        flocks[Flock(span.turns(*key), sum(crowd.clients for crowd in found))] = found
        yield
    return flocks


# ---- what is left ----------------------------------------------------------------------------


def _remainder(
    flocks: Mapping[Flock, list[Crowd]], span: Span
) -> Generator[None, None, tuple[tuple[Shortfall, ...], int]]:
    """Return who is missed, most first, and how many wait where it is looked no further."""
    lacks: dict[tuple[str, datetime | None], float] = defaultdict(float)
    for flock, crowds in flocks.items():
        for crowd in crowds if flock.left else ():
            opens_at = None if flock.had_turn else span.opens_too_late(crowd)
            lacks[crowd.time_zone, opens_at] += crowd.clients * (flock.left / flock.clients)
            yield
    shortfalls, waiting = [], 0
    for (time_zone, opens_at), clients in _whole(lacks).items():
        if opens_at is not None:
            shortfalls.append(Shortfall(time_zone, clients, "no_window", opens_at))
        elif span.until < span.end:
            waiting += clients
        elif clients:
            shortfalls.append(Shortfall(time_zone, clients, "no_time"))
    return tuple(sorted(shortfalls, key=_most_first)), waiting


def _most_first(shortfall: Shortfall) -> tuple[int, str, str]:
    return -shortfall.clients, shortfall.time_zone, shortfall.reason


def _whole(lacks: Mapping[Key, float]) -> dict[Key, int]:
    """Return whole numbers of clients: who is reached in part is not reached.

    They add up to the whole of the sum; the largest remainders are rounded up.
    """
    whole = {key: floor(clients) for key, clients in lacks.items()}
    missing = ceil(sum(lacks.values()) - NOBODY) - sum(whole.values())
    by_remainder = sorted(lacks, key=lambda key: whole[key] - lacks[key])
    for key in by_remainder[: max(0, missing)]:
        whole[key] += 1
    return whole
