"""Forecast when a mailing will be done and which clients it will not reach, by simulation.

The simulation follows the dispatcher's rules. Mailings share the rate of a gateway by their
priorities, and none sends faster than its own rate. Within a mailing, messages that were due first
are sent first. A message that is not sent before its sending window closes is due when the window
opens again. Messages go to the gateways that would get them now: the forecast knows no outage that
begins or ends later.
"""

from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from math import ceil, floor
from typing import Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from mailer.forecast.mailing_plan import MailingPlan
from mailer.forecast.throughput_simulation import (
    EPSILON,
    Cohort,
    SharedCapacity,
    send_at_once,
)
from mailer.forecast.tiers import EMPTY_TIER, Capacity, Tier
from mailer.mailing.window import SendingWindow

Reason = Literal["no_window", "no_time"]


class RecipientGroup(msgspec.Struct, frozen=True):
    """Clients of one time zone whose messages are still to be sent."""

    time_zone: str
    clients: float
    """Number of clients. A fraction of a client is an estimate; those of all groups add up to a
    whole number."""
    due_at: datetime | None = None
    """Earliest time to send; None when only the mailing's start and its sending window matter."""
    tier: Tier = EMPTY_TIER
    """The gateways that would get their messages now."""


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
    """The expected course of a mailing.

    The clients are reached, missed, waiting or without a usable gateway.
    """

    clients: int
    """Clients still to be reached now."""
    rate: float | None
    """The rate that the forecast assumes: messages a second of the mailing's gateways, for all
    mailings together. If it is None, each message is sent as soon as its sending window is open."""
    done_at: datetime | None
    """When the last client is reached; None when clients are missed or without a usable gateway,
    or beyond `MAX_HORIZON`."""
    missed: int
    """Clients who will not be reached before the end."""
    shortfalls: tuple[Shortfall, ...]
    """The missed clients by time zone and reason, largest number first."""
    until: datetime | None = None
    """When the simulation stopped, if clients are waiting then; None otherwise."""
    waiting: int = 0
    """Clients who are not reached by `until` but may be reached between `MAX_HORIZON` and the end.
    0 if the mailing ends before the horizon: clients not reached by the end are `missed`."""
    without_gateway: int = 0
    """Clients for whom no gateway is usable now, so that it is not known when they are reached."""
    opted_out: int = 0
    """Clients of the audience who have opted out. They are not among `clients`."""
    expected_end: datetime | None = None
    """When a running mailing will have no messages left to send: at `done_at`, or if clients are
    missed, at its end, when their messages expire. None when it is not known: before the start,
    without a rate, and while clients are waiting or without a usable gateway. None too when no
    client is left."""
    lost: int = 0
    """Clients whose messages have ended without being delivered, as far as is known. They are not
    among `clients`."""
    at_cap: int = 0
    """Clients who have reached the contact cap now, so that they would not get the mailing. They
    are not among `clients`. Those who are missed anyway are not counted here."""
    is_at_cap_estimated: bool = False
    """Whether `at_cap` comes from a sample of the audience."""
    missing_field: int = 0
    """Clients who lack a field of the text that has no default. This and `text_too_long` are 0 once
    the mailing has started: then those whose messages have ended so are `lost`, and nothing is said
    of the others."""
    text_too_long: int = 0
    """Clients for whom the text has more than 1,600 characters with their fields. Neither they nor
    those of `missing_field` are among `clients`."""
    is_text_estimated: bool = False
    """Whether `missing_field` and `text_too_long` come from a sample of the audience."""
    own_rate: float | None = None
    """The mailing's `rate`: most messages a second of this mailing. None without a limit."""

    @property
    def is_complete(self) -> bool:
        """Whether `clients` are all those of the audience who have not been reached."""
        return not (self.lost or self.opted_out or self.at_cap or self.without_text)

    @property
    def without_text(self) -> int:
        """The clients whom the mailing does not reach because of their fields."""
        return self.missing_field + self.text_too_long

    @property
    def is_too_slow(self) -> bool:
        """Whether clients are missed for lack of time, and the mailing's own rate is the reason.

        That is so if the gateways could take more.
        """
        has_no_time = any(shortfall.reason == "no_time" for shortfall in self.shortfalls)
        return has_no_time and self.own_rate is not None and self.own_rate <= (self.rate or 0)

    @property
    def reached(self) -> int:
        """Return the number of clients who are reached within the simulated time."""
        return self.clients - self.missed - self.waiting - self.without_gateway


def forecast(  # noqa: PLR0913  # the plan of a mailing and its circumstances
    groups: Iterable[RecipientGroup],
    *,
    start: datetime,
    end: datetime,
    window: SendingWindow | None,
    at: datetime,
    capacity: Capacity | None = None,
) -> Generator[None, None, Forecast]:
    """Return a forecast, from `at` on, of a mailing to `groups`.

    This is a generator, so that other work can be done meanwhile: it yields after each step of
    about 1 ms at most. A forecast for hundreds of time zones takes about 100 ms in all for each
    tier.

    `start`, `end` and `window` are those of the mailing. If `capacity` is None, only sending
    windows matter. The same applies if no rate is known of a tier of the mailing; but then clients
    without a usable gateway are still counted. The other running mailings in `capacity` use their
    share of the rates until they are done, as if all of their messages were due.
    """
    plan = MailingPlan(start.astimezone(UTC), end.astimezone(UTC), window, at.astimezone(UTC))
    groups = [group for group in groups if group.clients > 0]
    cohorts = yield from _cohorts(groups, plan)
    sendable = [cohort for cohort in cohorts if cohort.tier or capacity is None]
    rate = None if capacity is None else _rate(capacity, cohorts)
    if capacity is not None and rate is None and (own_rate := capacity.pace.rate):
        # of no gateway a rate is known, but the mailing is not faster than this
        capacity, rate = _limited_only(capacity, own_rate), own_rate
    # either simulation decreases `unreached` of the cohorts, which is counted afterwards
    if capacity is None or rate is None:
        last_seconds = send_at_once(sendable)
    else:
        last_seconds = yield from SharedCapacity(capacity).simulate(sendable)
    unreached = yield from _count_unreached(cohorts, plan, has_gateways=capacity is not None)
    done_at = None
    if not unreached.total:
        # without clients, `last_seconds` is 0, even before the start or after the end
        done_at = min(max(plan.since, plan.at + timedelta(seconds=last_seconds)), plan.end)
    return Forecast(
        clients=round(sum(group.clients for group in groups)),
        rate=rate,
        done_at=done_at,
        missed=unreached.missed,
        shortfalls=unreached.shortfalls,
        until=plan.until if unreached.waiting else None,
        waiting=unreached.waiting,
        without_gateway=unreached.without_gateway,
    )


def _rate(capacity: Capacity, cohorts: Iterable[Cohort]) -> float | None:
    """Return the rate of all tiers of a mailing; without clients, that of all gateways."""
    tiers = {cohort.tier for cohort in cohorts} or {frozenset(capacity.gateways)}
    tiers.discard(EMPTY_TIER)
    return capacity.rate(tiers) if tiers else None


def _limited_only(capacity: Capacity, rate: float) -> Capacity:
    """Return a capacity in which nothing but the mailing's own rate limits it."""
    gateways = {name: replace(gateway, rate=rate) for name, gateway in capacity.gateways.items()}
    return replace(capacity, gateways=gateways, others={})


def _cohorts(
    groups: Iterable[RecipientGroup], plan: MailingPlan
) -> Generator[None, None, dict[Cohort, list[RecipientGroup]]]:
    """Return cohorts of groups with the same tier that may be sent to at the same times.

    Each has its groups. Yields after each step, as `forecast` does.
    """
    groups_by_times = defaultdict(list)
    for group in groups:
        offsets = plan.offsets(group.time_zone)
        groups_by_times[offsets, group.due_at, group.tier].append(group)
        yield
    cohorts = {}
    for (offsets, due_at, tier), members in groups_by_times.items():
        clients = sum(group.clients for group in members)
        cohorts[Cohort(plan.slots(offsets, due_at), clients, tier)] = members
        yield
    return cohorts


# ---- clients not reached ---------------------------------------------------------------------


class UnreachedKey(NamedTuple):
    """What clients who are not reached have in common."""

    time_zone: str
    opens_at: datetime | None
    """When the sending window opens, if that is too late; None otherwise."""
    has_gateway: bool


class Unreached(msgspec.Struct, frozen=True):
    """The clients who are not reached, in the terms of `Forecast`."""

    shortfalls: tuple[Shortfall, ...]
    waiting: int
    without_gateway: int

    @property
    def missed(self) -> int:
        """Return the number of clients of all shortfalls."""
        return sum(shortfall.clients for shortfall in self.shortfalls)

    @property
    def total(self) -> int:
        """Return the number of all clients who are not reached."""
        return self.missed + self.waiting + self.without_gateway


def _count_unreached(
    cohorts: Mapping[Cohort, list[RecipientGroup]], plan: MailingPlan, *, has_gateways: bool
) -> Generator[None, None, Unreached]:
    """Count the clients who are not reached. Yields after each step, as `forecast` does.

    `has_gateways` says whether the tiers of the cohorts matter.
    """
    unreached: dict[UnreachedKey, float] = defaultdict(float)
    for cohort, groups in cohorts.items():
        if not cohort.unreached:
            continue
        unreached_part = cohort.unreached / cohort.clients
        for group in groups:
            # a cohort with a slot has a window that opens in time
            opens_at = (
                None if cohort.has_any_slot else plan.opens_too_late(group.time_zone, group.due_at)
            )
            has_gateway = bool(group.tier) or not has_gateways or not cohort.has_any_slot
            key = UnreachedKey(group.time_zone, opens_at, has_gateway)
            unreached[key] += group.clients * unreached_part
            yield
    shortfalls, waiting, without_gateway = [], 0, 0
    for key, clients in _round(unreached).items():
        if not clients:  # a fraction that was rounded down
            continue
        if key.opens_at is not None:
            shortfalls.append(Shortfall(key.time_zone, clients, "no_window", key.opens_at))
        elif not key.has_gateway:
            without_gateway += clients
        elif plan.until < plan.end:
            waiting += clients
        else:
            shortfalls.append(Shortfall(key.time_zone, clients, "no_time"))
    return Unreached(tuple(sorted(shortfalls, key=_largest_first)), waiting, without_gateway)


def _largest_first(shortfall: Shortfall) -> tuple[int, str, str]:
    """Return the sort key by number of clients; equal numbers by time zone and reason."""
    return -shortfall.clients, shortfall.time_zone, shortfall.reason


def _round(unreached: Mapping[UnreachedKey, float]) -> dict[UnreachedKey, int]:
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
