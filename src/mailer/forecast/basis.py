"""Read the basis of a forecast: what is left to send, by which mailings, and how fast.

All numbers come from counters: neither messages nor clients are read.

Messages go through different gateways by the operator codes of the clients (`routing`). Counters
have operator codes and time zones jointly for an audience, but only separately for messages that
exist. So in a started mailing, each time zone is assumed to have the same share of each operator
code. The split of another mailing is known if it is one of the `MAX_SPLIT_MAILINGS` largest ones;
the others, and those without any message yet, are assumed to be split as the forecast's mailing.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.forecast import store
from mailer.forecast.model import RecipientGroup
from mailer.forecast.routing import Routing, Shares
from mailer.forecast.store import GatewayLoad
from mailer.forecast.tiers import Capacity, Gateways, OtherMailing, Pace, Tier, of_workers
from mailer.mailing import audience
from mailer.mailing.field_types import PRIORITY_WEIGHTS
from mailer.mailing.model import (
    WINDOW_CLOSED,
    Mailing,
    MailingChange,
    NewMailing,
    excluded_opt_outs,
)
from mailer.mailing.service import REPLAN_FIELDS
from mailer.message import counters
from mailer.statuses import FAILURES, RETRYABLE

MAX_SPLIT_MAILINGS = 100
"""Running mailings whose messages are counted by operator code: those with the most messages."""


class ForecastBasis(msgspec.Struct, frozen=True):
    """The data that a forecast is computed from, at the moment `at`."""

    mailing: NewMailing | Mailing
    """The mailing, with its changes if the forecast is for a change."""
    groups: Sequence[RecipientGroup]
    """Clients still to be reached."""
    at: datetime
    capacity: Capacity | None
    """None when no gateway is usable, or it is not known when the mailing continues."""
    opted_out: int = 0
    """Clients of the audience who are not reached because they have opted out. In a started mailing
    these are cancelled messages already, and not counted here."""
    lost: int = 0
    """Clients whose messages have ended without being delivered, and are not scheduled again."""
    is_started: bool = False
    """Whether the mailing has messages: its clients are those of the messages."""


async def read_unsaved_basis(
    connection: AsyncConnection, new: NewMailing, gateways: Gateways, workers: int = 1
) -> ForecastBasis:
    """Read the basis of the forecast of a mailing that is not saved yet.

    `gateways` are the usable ones with the rates of one worker, and `workers` is the number of
    workers. If there are none, the forecast considers sending windows only.
    """
    reader = await _BasisReader.create(connection, [], gateways, workers)
    with audience.segments_read_once():
        return await reader.read_unsaved(new)


async def read_basis(
    connection: AsyncConnection,
    mailing: Mailing,
    gateways: Gateways,
    workers: int = 1,
    changes: MailingChange | None = None,
) -> ForecastBasis | None:
    """Read the basis of the forecast of a mailing from now on.

    Parameters as in `read_unsaved_basis`.

    Return None when the mailing has ended. Return None too when it is paused, and when it is held
    for another reason than its sending window, because it is not known when it continues.

    With `changes`, read the basis for the mailing as changed. If that is paused or held, its
    forecast considers sending windows only. Messages that failed permanently or are cancelled are
    `lost`, unless the change replans them.
    """
    reader = await _BasisReader.create(connection, [mailing.id], gateways, workers)
    with audience.segments_read_once():
        return await reader.read(mailing, changes)


async def read_bases(
    connection: AsyncConnection, mailings: Sequence[Mailing], gateways: Gateways, workers: int = 1
) -> list[ForecastBasis | None]:
    """Read the bases of the forecasts of mailings; see `read_basis`. The load is read only once."""
    ids = [mailing.id for mailing in mailings]
    reader = await _BasisReader.create(connection, ids, gateways, workers)
    with audience.segments_read_once():
        return [await reader.read(mailing) for mailing in mailings]


class _BasisReader:
    """Reads the bases of the forecasts of mailings, for a load that is read once."""

    def __init__(
        self,
        connection: AsyncConnection,
        load: GatewayLoad,
        gateways: Gateways,
        routing: Routing,
        known_shares: Mapping[int, Shares],
    ) -> None:
        self._connection = connection
        self._load = load
        self._gateways = gateways
        self._routing = routing
        self._known_shares = known_shares
        """How the messages of running mailings are split, by the id of the mailing."""

    @classmethod
    async def create(
        cls,
        connection: AsyncConnection,
        mailing_ids: Sequence[int],
        gateways: Gateways,
        workers: int,
    ) -> "_BasisReader":
        """Read the load of all mailings and the routes; `mailing_ids` are the requested ones."""
        load = await store.read_load(connection, mailing_ids)
        routing = Routing(await store.read_operator_routes(connection), gateways)
        known_shares: dict[int, Shares] = {}
        divided = []
        for mailing_id in load.waiting:
            tier = routing.single_tier(load.own_gateways.get(mailing_id))
            if tier is None:
                divided.append(mailing_id)
            else:
                known_shares[mailing_id] = {tier: 1}
        if divided:
            largest = sorted(divided, key=load.waiting.__getitem__, reverse=True)
            by_code = await store.count_waiting_by_code(connection, largest[:MAX_SPLIT_MAILINGS])
            known_shares |= {id_: routing.shares(codes) for id_, codes in by_code.items()}
        return cls(connection, load, of_workers(gateways, workers), routing, known_shares)

    async def read_unsaved(self, new: NewMailing) -> ForecastBasis:
        """Do what `read_unsaved_basis` does."""
        groups = await self._audience(new)
        capacity = self._capacity(None, new, groups)
        opted_out = await self._count_opted_out(new)
        return ForecastBasis(new, groups, self._load.now, capacity, opted_out)

    async def read(
        self, before: Mailing, changes: MailingChange | None = None
    ) -> ForecastBasis | None:
        """Do what `read_basis` does. `before` is the mailing without `changes`."""
        load = self._load
        mailing = before if changes is None else replace(before, **changes.provided_values())
        if mailing.has_ended or mailing.datetime_end <= load.now:
            return None
        held = mailing.held
        is_waiting = mailing.status == "paused" or (held and held.reason != WINDOW_CLOSED)
        if is_waiting and changes is None:
            return None
        must_replan = any(getattr(mailing, name) != getattr(before, name) for name in REPLAN_FIELDS)
        opted_out = lost = 0
        is_started = mailing.id in load.started
        if not is_started:
            groups = await self._audience(mailing)
            opted_out = await self._count_opted_out(mailing)
        else:
            is_enqueuing = mailing.id in load.enqueuing
            if must_replan:
                clients = await _count_remaining_after_replan(self._connection, mailing)
                lost = mailing.count_of(*RETRYABLE)
            else:
                lost = mailing.count_of(*FAILURES)
                clients = await _count_remaining(
                    self._connection, mailing, is_enqueuing=is_enqueuing
                )
            shares = await self._shares(mailing, is_enqueued=not is_enqueuing and not must_replan)
            groups = _split(clients, shares)
        capacity = None if is_waiting else self._capacity(mailing.id, mailing, groups)
        return ForecastBasis(mailing, groups, load.now, capacity, opted_out, lost, is_started)

    async def _count_opted_out(self, mailing: NewMailing | Mailing) -> int:
        """Return how many clients of the audience are not reached because they have opted out."""
        if mailing.purpose != "marketing":
            return 0
        return await audience.count(self._connection, mailing.client_filter, opted_out=True)

    def _capacity(
        self,
        mailing_id: int | None,
        mailing: NewMailing | Mailing,
        groups: Sequence[RecipientGroup],
    ) -> Capacity | None:
        """Return the gateways, and what the other running mailings send through them."""
        if not self._gateways:
            return None
        own_shares = _shares_of(groups)
        others: dict[Tier, list[OtherMailing]] = defaultdict(list)
        for other_id, messages in self._load.waiting.items():
            if other_id != mailing_id:
                weight, rate = self._load.paces[other_id]
                for tier, share in self._known_shares.get(other_id, own_shares).items():
                    pace = Pace(weight, None if rate is None else rate * share)
                    others[tier].append(OtherMailing(messages * share, pace))
        own_pace = Pace(PRIORITY_WEIGHTS[mailing.priority], mailing.rate)
        return Capacity(self._gateways, others, own_pace)

    async def _audience(self, mailing: NewMailing | Mailing) -> list[RecipientGroup]:
        """Return the clients whom a mailing would reach now."""
        tier = self._routing.single_tier(mailing.gateway)
        opted_out = excluded_opt_outs(mailing.purpose)
        if tier is not None:
            by_zone = await audience.count_by_zone(
                self._connection, mailing.client_filter, opted_out=opted_out
            )
            return _split(by_zone, {tier: 1})
        by_zone_and_tier: dict[tuple[str, Tier], int] = defaultdict(int)
        by_code_and_zone = await store.count_by_code_and_zone(
            self._connection, mailing.client_filter, opted_out=opted_out
        )
        for (code, zone), clients in by_code_and_zone.items():
            by_zone_and_tier[zone, self._routing.tier(code)] += clients
        return [
            RecipientGroup(zone, clients, tier=tier)
            for (zone, tier), clients in by_zone_and_tier.items()
        ]

    async def _shares(self, mailing: Mailing, *, is_enqueued: bool) -> Shares:
        """Return how the remaining messages of a started mailing are split.

        If they are not only those that exist, return how its audience is split.
        """
        tier = self._routing.single_tier(mailing.gateway)
        if tier is not None:
            return {tier: 1}
        shares = None if is_enqueued else _shares_of(await self._audience(mailing))
        if not shares:
            by_code = await store.count_waiting_by_code(self._connection, [mailing.id])
            shares = self._routing.shares(by_code.get(mailing.id, {}))
        return shares


def _split(clients: Mapping[str, int], shares: Shares) -> list[RecipientGroup]:
    """Return clients by time zone as groups; each time zone has these shares of each tier."""
    return [
        RecipientGroup(zone, count * share, tier=tier)
        for zone, count in clients.items()
        for tier, share in shares.items()
    ]


def _shares_of(groups: Sequence[RecipientGroup]) -> Shares:
    """Return the share of the clients of each tier."""
    by_tier: dict[Tier, float] = defaultdict(float)
    for group in groups:
        by_tier[group.tier] += group.clients
    total = sum(by_tier.values())
    return {tier: clients / total for tier, clients in by_tier.items() if total}


async def _count_remaining(
    connection: AsyncConnection, mailing: Mailing, *, is_enqueuing: bool
) -> dict[str, int]:
    """Return how many clients are still to be reached, by time zone.

    While the audience is being enqueued, these are all matching clients without an outcome. They
    include clients who have joined the directory since the start: counters do not distinguish them.
    Messages that are cancelled already are taken for those of clients who have opted out.
    """
    counts_by_zone = await counters.get_by_zone(connection, mailing.id)
    remaining = {zone: counts.waiting for zone, counts in counts_by_zone.items()}
    if not is_enqueuing:
        return remaining
    matching = await audience.count_by_zone(connection, mailing.client_filter)
    opted_out: dict[str, int] = {}
    if mailing.purpose == "marketing":
        opted_out = await audience.count_by_zone(connection, mailing.client_filter, opted_out=True)
    for zone, clients in matching.items():
        counts = counts_by_zone.get(zone, counters.Counters())
        not_enqueued_opt_outs = max(0, opted_out.get(zone, 0) - counts.outcomes.cancelled)
        # messages that wait are sent, even if their clients do not match any more
        remaining[zone] = max(
            counts.waiting, clients - counts.outcomes.total - not_enqueued_opt_outs
        )
    return remaining


async def _count_remaining_after_replan(
    connection: AsyncConnection, mailing: Mailing
) -> dict[str, int]:
    """Return how many clients are still to be reached after a replan, by time zone.

    These are all matching clients minus the messages that have an outcome. Cancelled messages are
    not subtracted, because a replan may schedule them again. The number is an estimate: counters do
    not distinguish clients who have joined the directory since the start, nor messages whose
    clients do not match any more.
    """
    counts_by_zone = await counters.get_by_zone(connection, mailing.id)
    remaining = await audience.count_by_zone(
        connection, mailing.client_filter, opted_out=excluded_opt_outs(mailing.purpose)
    )
    for zone, counts in counts_by_zone.items():
        done = counts.outcomes.total - counts.outcomes.cancelled
        remaining[zone] = max(0, remaining.get(zone, 0) - done)
    return remaining
