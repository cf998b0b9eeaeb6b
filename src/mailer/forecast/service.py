"""Forecasts of mailings, from counts only: neither messages nor clients are read.

First the basis of a forecast is read from the database (`read`, `read_draft`, `read_running`). Then
`compute` computes the forecast, which may take some time and holds no connection.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from weakref import WeakKeyDictionary

import msgspec
from msgspec.structs import replace
from sqlalchemy import ARRAY, BigInteger, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db import workers as database_workers
from mailer.db.engine import snapshot
from mailer.db.sql import add_up
from mailer.db.tables.mailing import OPEN_MAILING
from mailer.forecast.model import Forecast, RecipientGroup, forecast
from mailer.gateway.channel import Channel
from mailer.gateway.throughput import ThroughputEstimate
from mailer.mailing import audience
from mailer.mailing import store as mailings
from mailer.mailing.model import Mailing, MailingChange, NewMailing
from mailer.mailing.service import REPLAN_FIELDS
from mailer.mailing.window import window_between
from mailer.message import counters
from mailer.statuses import MESSAGE_STATUSES, OPEN
from mailer.time_slices import run_in_slices

# Of running mailings: how many messages wait, and how many clients are not enqueued yet. Of the
# mailings with the given ids: whether they are started, and whether their audience is being
# enqueued. After a change of the filter, it is enqueued again.
SELECT_LOAD = text(f"""
    WITH live AS (
        SELECT id, status, {add_up(OPEN)} AS waiting, id = ANY (:ids) AS is_requested,
            CASE WHEN audience_cursor < audience_until AND NOT is_replanning THEN greatest(0,
                clients_count - ({add_up(MESSAGE_STATUSES)})) ELSE 0 END AS not_enqueued,
            audience_until IS NOT NULL AS is_started,
            audience_cursor < audience_until AS is_enqueuing
        FROM mailing JOIN mailing_counts ON mailing_id = id
        WHERE {OPEN_MAILING}
    )
    SELECT clock_timestamp() AS now,
        coalesce(array_agg(id) FILTER (WHERE status = 'running'), '{{}}') AS running,
        coalesce(array_agg(waiting + not_enqueued) FILTER (WHERE status = 'running'), '{{}}')
            AS waiting,
        coalesce(array_agg(id) FILTER (WHERE is_requested AND is_started), '{{}}') AS started,
        coalesce(array_agg(id) FILTER (WHERE is_requested AND is_enqueuing), '{{}}') AS enqueuing
    FROM live""").bindparams(  # noqa: S608  # no user input
    bindparam("ids", type_=ARRAY(BigInteger))
)


class GatewayLoad(msgspec.Struct, frozen=True):
    """The messages that all mailings still have to send, at one moment."""

    now: datetime
    waiting: Mapping[int, int]
    """Messages that each running mailing still has to send, by its id."""
    started: frozenset[int]
    """Ids of the requested mailings that are started."""
    enqueuing: frozenset[int]
    """Ids of the requested mailings whose audience is being enqueued."""

    def of_others(self, mailing_id: int | None) -> list[int]:
        """Return how many messages each of the other running mailings has to send."""
        return [count for other_id, count in self.waiting.items() if other_id != mailing_id]


class ForecastBasis(msgspec.Struct, frozen=True):
    """The data that a forecast is computed from, at the moment `at`."""

    plan: NewMailing | Mailing
    clients: Mapping[str, int]
    """Clients still to be reached, by time zone."""
    at: datetime
    rate: float | None
    """Messages a second for all mailings together; None when it is not known."""
    others: Sequence[int]
    """Messages that each of the other running mailings still has to send."""


class SendingCapacity(msgspec.Struct, frozen=True):
    """The workers that send a mailing's messages, and the mailings that share them."""

    workers: int
    """Number of active workers; 1 when there are none, because forecasts assume one."""
    others: int
    """Number of other running mailings."""
    has_rate_limit: bool
    """Whether the rate is a limit from the settings rather than a measured rate."""


async def read_capacity(
    connection: AsyncConnection,
    throughput: ThroughputEstimate | None,
    mailing: Mailing | None = None,
) -> SendingCapacity:
    """Return the sending capacity for a mailing, or for one that is not saved yet."""
    active = await database_workers.active_workers(connection)
    running = await mailings.count(connection, "running")
    is_running = mailing is not None and mailing.status == "running"
    return SendingCapacity(
        len(active) or 1, running - is_running, throughput is not None and throughput.is_limited
    )


async def of_draft(
    engine: AsyncEngine, draft: NewMailing, throughput: ThroughputEstimate | None, workers: int = 1
) -> Forecast:
    """Return the forecast of a mailing that is not saved yet."""
    async with snapshot(engine) as connection:
        basis = await read_draft(connection, draft, throughput, workers)
    return await _compute(basis)


async def of_mailing(
    engine: AsyncEngine,
    mailing_id: int,
    throughput: ThroughputEstimate | None,
    workers: int = 1,
    changes: MailingChange | None = None,
) -> Forecast | None:
    """Return the forecast of a mailing; see `read`. Raises `MailingNotFoundError`."""
    async with snapshot(engine) as connection:
        mailing = await mailings.get(connection, mailing_id)
        basis = await read(connection, mailing, throughput, workers, changes)
    return await compute(basis)


async def read_draft(
    connection: AsyncConnection,
    draft: NewMailing,
    throughput: ThroughputEstimate | None,
    workers: int = 1,
) -> ForecastBasis:
    """Read the basis of the forecast of a mailing that is not saved yet.

    `throughput` is that of one worker, and `workers` their number. If it is None or not measured
    yet, the forecast considers windows only.
    """
    load = await _read_load(connection, [])
    clients = await audience.count_by_zone(connection, draft.client_filter)
    return ForecastBasis(draft, clients, load.now, _rate(throughput, workers), load.of_others(None))


async def read(
    connection: AsyncConnection,
    before: Mailing,
    throughput: ThroughputEstimate | None,
    workers: int = 1,
    changes: MailingChange | None = None,
) -> ForecastBasis | None:
    """Read the basis of the forecast of a mailing from now on.

    Return None when the mailing has ended, and when it is paused or held, because it is unknown
    when it continues. With `changes`, read the basis for the changed mailing. While that is paused
    or held, its forecast considers windows only. Messages that failed permanently or are cancelled
    are not counted, unless the change replans them.
    """
    load = await _read_load(connection, [before.id])
    return await _read(connection, before, load, _rate(throughput, workers), changes)


async def read_running(
    connection: AsyncConnection,
    running: Sequence[Mailing],
    throughput: ThroughputEstimate | None,
    workers: int = 1,
) -> list[tuple[Mailing, ForecastBasis | None]]:
    """Read the bases of the forecasts of running mailings, each with its mailing; see `read`."""
    load = await _read_load(connection, [mailing.id for mailing in running])
    rate = _rate(throughput, workers)
    return [(mailing, await _read(connection, mailing, load, rate)) for mailing in running]


async def compute(basis: ForecastBasis | None) -> Forecast | None:
    """Return the forecast for a basis, or None for None. The caller must hold no connection.

    A forecast for many time zones takes about 100 ms. It is computed in slices, between which the
    event loop does other work. Only one forecast is computed at a time, to leave enough time for
    that work.
    """
    return None if basis is None else await _compute(basis)


async def _compute(basis: ForecastBasis) -> Forecast:
    plan = basis.plan
    window = window_between(plan.send_interval_time_start, plan.send_interval_time_end)
    async with computation_lock():
        return await run_in_slices(
            forecast(
                [RecipientGroup(zone, count) for zone, count in basis.clients.items()],
                start=plan.datetime_start,
                end=plan.datetime_end,
                window=window,
                at=basis.at,
                rate=basis.rate,
                others=basis.others,
            )
        )


_LOCKS: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


def computation_lock() -> asyncio.Lock:
    """Return the lock of the running event loop that is held while a forecast is computed."""
    return _LOCKS.setdefault(asyncio.get_running_loop(), asyncio.Lock())


async def expected_ends(
    bases: Iterable[tuple[Mailing, ForecastBasis | None]],
) -> dict[int, datetime | None]:
    """Return the expected end of each mailing, by its id; see `expected_end`."""
    return {mailing.id: expected_end(mailing, await compute(basis)) for mailing, basis in bases}


def expected_end(mailing: Mailing, expected: Forecast | None) -> datetime | None:
    """Return when a running mailing will have no messages left to send, by its forecast.

    That is at the latest the mailing's end, when the rest expires. Return None when it is not
    known: before the start, while the mailing is paused or held, while no rate is known, and when
    it is beyond the horizon of the forecast.
    """
    if mailing.status != "running" or expected is None or expected.rate is None:
        return None
    if not expected.clients or expected.waiting:
        return None
    return mailing.datetime_end if expected.missed else expected.done_at


async def _read(
    connection: AsyncConnection,
    before: Mailing,
    load: GatewayLoad,
    rate: float | None,
    changes: MailingChange | None = None,
) -> ForecastBasis | None:
    mailing = before if changes is None else replace(before, **changes.provided_values())
    if mailing.has_ended or mailing.datetime_end <= load.now:
        return None
    if mailing.status == "paused" or mailing.held:
        if changes is None:
            return None
        rate = None  # consider windows only
    if mailing.id not in load.started:
        clients = await audience.count_by_zone(connection, mailing.client_filter)
    elif any(getattr(mailing, name) != getattr(before, name) for name in REPLAN_FIELDS):
        clients = await count_remaining_after_replan(connection, mailing)
    else:
        clients = await _count_remaining(
            connection, mailing, is_enqueuing=mailing.id in load.enqueuing
        )
    return ForecastBasis(mailing, clients, load.now, rate, load.of_others(mailing.id))


async def _read_load(connection: AsyncConnection, mailing_ids: Sequence[int]) -> GatewayLoad:
    row = (await connection.execute(SELECT_LOAD, {"ids": list(mailing_ids)})).one()
    return GatewayLoad(
        row.now,
        dict(zip(row.running, row.waiting, strict=True)),
        frozenset(row.started),
        frozenset(row.enqueuing),
    )


async def _count_remaining(
    connection: AsyncConnection, mailing: Mailing, *, is_enqueuing: bool
) -> dict[str, int]:
    """Return how many clients are still to be reached, by time zone.

    While the audience is being enqueued, these are all matching clients without an outcome. That
    includes clients who join the directory meanwhile, because no count excludes them.
    """
    counts_by_zone = await counters.get_by_zone(connection, mailing.id)
    remaining = {zone: counts.waiting for zone, counts in counts_by_zone.items()}
    if not is_enqueuing:
        return remaining
    matching = await audience.count_by_zone(connection, mailing.client_filter)
    for zone, clients in matching.items():
        counts = counts_by_zone.get(zone, counters.Counters())
        remaining[zone] = max(counts.waiting, clients - (counts.messages - counts.waiting))
    return remaining


async def count_remaining_after_replan(
    connection: AsyncConnection, mailing: Mailing
) -> dict[str, int]:
    """Return how many clients are still to be reached after a replan, by time zone.

    These are all matching clients minus all messages that were sent. No count excludes clients who
    joined the directory since the start, or sent messages whose clients do not match any more.
    """
    counts_by_zone = await counters.get_by_zone(connection, mailing.id)
    remaining = await audience.count_by_zone(connection, mailing.client_filter)
    for zone, counts in counts_by_zone.items():
        sent = counts.outcomes.total - counts.outcomes.cancelled
        remaining[zone] = max(0, remaining.get(zone, 0) - sent)
    return remaining


def usable_throughput(channel: Channel | None) -> ThroughputEstimate | None:
    """Return the throughput of a channel for forecasts.

    None without a gateway and during its outage, when the throughput does not apply.
    """
    return None if channel is None or channel.breaker.outage is not None else channel.throughput


def _rate(throughput: ThroughputEstimate | None, workers: int) -> float | None:
    """Return the messages a second of all workers together; None when it is not known."""
    if throughput is None or throughput.rate is None:
        return None
    return throughput.rate * workers
