"""Forecast when a mailing will be done and which clients it will not reach, by simulation.

The simulation follows the dispatcher's rules. Mailings share the rate equally. Within a mailing,
messages that were due first are sent first. A message that is not sent before its sending window
closes is due when the window opens again.
"""

from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from math import ceil, floor
from typing import Literal

import msgspec

from mailer.forecast.throughput_simulation import (
    EPSILON,
    Cohort,
    SendSlot,
    SharedCapacity,
    send_at_once,
)
from mailer.mailing.window import DAY, Offsets, SendingWindow, offsets_of

MAX_HORIZON = timedelta(days=60)
"""The longest time that a forecast simulates; longer times are not useful."""

Reason = Literal["no_window", "no_time"]
ZoneAndOpening = tuple[str, datetime | None]
"""A time zone, and when the sending window opens there if that is too late, else None."""


class RecipientGroup(msgspec.Struct, frozen=True):
    """Clients of one time zone whose messages are still to be sent."""

    time_zone: str
    clients: int
    due_at: datetime | None = None
    """Earliest time to send; None when only the mailing's start and its sending window matter."""


class Shortfall(msgspec.Struct, frozen=True):
    """Clients of one time zone who will not be reached."""

    time_zone: str
    clients: int
    reason: Reason
    """`no_window`: the sending window opens at the mailing's end or later. `no_time`: at this rate,
    the time until the end is too short."""
    opens_at: datetime | None = None
    """When the sending window opens, for `no_window`; None for `no_time`."""


class Forecast(msgspec.Struct, frozen=True):
    """The expected course of a mailing: clients = reached + missed + waiting."""

    clients: int
    """Clients still to be reached now."""
    rate: float | None
    """The rate that the forecast assumes: messages a second for all mailings together. If it is
    None, each message is sent as soon as its sending window is open."""
    done_at: datetime | None
    """When the last client is reached; None when clients are missed, or beyond `MAX_HORIZON`."""
    missed: int
    """Clients who will not be reached before the end."""
    shortfalls: tuple[Shortfall, ...]
    """The missed clients by time zone and reason, largest number first."""
    until: datetime | None = None
    """When the simulation stopped, if clients are waiting then; None otherwise."""
    waiting: int = 0
    """Clients who are not reached by `until` but may be reached between `MAX_HORIZON` and the end.
    0 if the mailing ends before the horizon: clients not reached by the end are `missed`."""

    @property
    def reached(self) -> int:
        """Return the number of clients who are reached within the simulated time."""
        return self.clients - self.missed - self.waiting


def forecast(  # noqa: PLR0913  # the plan of a mailing and its circumstances
    groups: Iterable[RecipientGroup],
    *,
    start: datetime,
    end: datetime,
    window: SendingWindow | None,
    at: datetime,
    rate: float | None = None,
    messages_of_others: Iterable[int] = (),
) -> Generator[None, None, Forecast]:
    """Return a forecast, from `at` on, of a mailing to `groups`.

    This is a generator, so that other work can be done meanwhile: it yields after each step of
    about 1 ms at most. A forecast for hundreds of time zones takes about 100 ms in all.

    `start`, `end` and `window` are those of the mailing. `rate` is in messages a second for all
    mailings together. If it is None, the rate is not known, and only sending windows matter.
    `messages_of_others` has the number of messages that each of the other running mailings has left
    to send. These mailings use their share of the rate until they are done, as if all of their
    messages were due.
    """
    plan = MailingPlan(start.astimezone(UTC), end.astimezone(UTC), window, at.astimezone(UTC))
    groups = [group for group in groups if group.clients > 0]
    cohorts = yield from _cohorts(groups, plan)
    # either simulation decreases `unreached` of the cohorts, which is counted afterwards
    if rate is None:
        last_seconds = send_at_once(cohorts)
    else:
        last_seconds = yield from SharedCapacity(rate, messages_of_others).simulate(list(cohorts))
    shortfalls, waiting = yield from _count_unreached(cohorts, plan)
    missed = sum(shortfall.clients for shortfall in shortfalls)
    done_at = None
    if not missed and not waiting:
        # without clients, `last_seconds` is 0, even before the start or after the end
        done_at = min(max(plan.since, plan.at + timedelta(seconds=last_seconds)), plan.end)
    return Forecast(
        clients=sum(group.clients for group in groups),
        rate=rate,
        done_at=done_at,
        missed=missed,
        shortfalls=shortfalls,
        until=plan.until if waiting else None,
        waiting=waiting,
    )


# ---- when messages may be sent ----------------------------------------------------------------


class MailingPlan(msgspec.Struct, frozen=True):
    """When a mailing may be sent, and the moment `at` of the forecast, all in UTC."""

    start: datetime
    end: datetime
    window: SendingWindow | None
    at: datetime

    @property
    def since(self) -> datetime:
        """Return the earliest moment to send from now on."""
        return max(self.start, self.at)

    @property
    def until(self) -> datetime:
        """Return the end of the simulated time."""
        return min(self.end, self.since + MAX_HORIZON)

    def offsets(self, time_zone: str) -> Offsets:
        """Return the UTC offsets of a time zone during the mailing.

        Zones with equal offsets have their sending windows at equal times. The offsets start a day
        before `at`, because a window that is open now may have opened then. Without a window, the
        result is the same for all time zones.
        """
        earliest = max(self.start, self.at - DAY)
        if self.window is None:
            return ((earliest, timedelta()),)
        return offsets_of(time_zone, earliest, self.until)

    def slots(self, offsets: Offsets, due_at: datetime | None) -> Iterator[SendSlot]:
        """Yield, in order, when messages may be sent to clients with these UTC offsets.

        The messages of a slot may be due before its start: an open window has opened in the past.
        """
        intervals: Iterable[tuple[datetime, datetime]] = [(self.start, self.until)]
        if self.window is not None:
            intervals = self.window.open_intervals(offsets, self.until)
        earliest = max(self.since, due_at or self.since)
        for opens, closes in intervals:
            if closes > earliest:
                yield SendSlot(
                    due=self._seconds_until(max(opens, due_at or opens)),
                    start=self._seconds_until(max(opens, earliest)),
                    end=self._seconds_until(closes),
                )

    def _seconds_until(self, moment: datetime) -> float:
        return (moment - self.at).total_seconds()

    def opens_too_late(self, group: RecipientGroup) -> datetime | None:
        """Return when the window opens for a group if that is at the mailing's end or later.

        Return None otherwise, and also after the mailing's end: then `no_time` is the reason.
        """
        if self.window is None or self.since >= self.end:
            return None
        earliest = max(self.since, group.due_at or self.since)
        opens_at = self.window.next_opening(group.time_zone, earliest)
        return opens_at if opens_at >= self.end else None


def _cohorts(
    groups: Iterable[RecipientGroup], plan: MailingPlan
) -> Generator[None, None, dict[Cohort, list[RecipientGroup]]]:
    """Return cohorts of groups that may be sent to at the same times, each with its groups.

    Yields after each step, as `forecast` does.
    """
    groups_by_times = defaultdict(list)
    for group in groups:
        groups_by_times[plan.offsets(group.time_zone), group.due_at].append(group)
        yield
    cohorts = {}
    for (offsets, due_at), members in groups_by_times.items():
        clients = sum(group.clients for group in members)
        cohorts[Cohort(plan.slots(offsets, due_at), clients)] = members
        yield
    return cohorts


# ---- clients not reached ---------------------------------------------------------------------


def _count_unreached(
    cohorts: Mapping[Cohort, list[RecipientGroup]], plan: MailingPlan
) -> Generator[None, None, tuple[tuple[Shortfall, ...], int]]:
    """Return the shortfalls, largest first, and the number of clients waiting at the horizon.

    Yields after each step, as `forecast` does.
    """
    unreached: dict[ZoneAndOpening, float] = defaultdict(float)
    for cohort, groups in cohorts.items():
        if not cohort.unreached:
            continue
        unreached_part = cohort.unreached / cohort.clients
        for group in groups:
            # a cohort with a slot has a window that opens in time
            opens_at = None if cohort.has_any_slot else plan.opens_too_late(group)
            unreached[group.time_zone, opens_at] += group.clients * unreached_part
            yield
    shortfalls, waiting = [], 0
    for (time_zone, opens_at), clients in _round(unreached).items():
        if not clients:  # a fraction that was rounded down
            continue
        if opens_at is not None:
            shortfalls.append(Shortfall(time_zone, clients, "no_window", opens_at))
        elif plan.until < plan.end:
            waiting += clients
        else:
            shortfalls.append(Shortfall(time_zone, clients, "no_time"))
    return tuple(sorted(shortfalls, key=_largest_first)), waiting


def _largest_first(shortfall: Shortfall) -> tuple[int, str, str]:
    """Return the sort key by number of clients; equal numbers by time zone and reason."""
    return -shortfall.clients, shortfall.time_zone, shortfall.reason


def _round(unreached: Mapping[ZoneAndOpening, float]) -> dict[ZoneAndOpening, int]:
    """Return unreached clients as whole numbers, by the largest remainder method.

    Each number is rounded down, and then those with the largest fractions are increased by 1, until
    the sum is the original sum rounded up: a client who is reached in part is not reached.
    """
    rounded = {key: floor(clients) for key, clients in unreached.items()}
    missing = ceil(sum(unreached.values()) - EPSILON) - sum(rounded.values())
    largest_fraction_first = sorted(unreached, key=lambda key: rounded[key] - unreached[key])
    for key in largest_fraction_first[: max(0, missing)]:
        rounded[key] += 1
    return rounded
