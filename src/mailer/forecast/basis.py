"""Read the basis of a forecast: what is left to send, by which mailings, and how fast.

All numbers come from counters: neither messages nor clients are read.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.forecast.store import GatewayLoad, read_load
from mailer.forecast.throughput import Throughput
from mailer.mailing import audience
from mailer.mailing.model import Mailing, MailingChange, NewMailing
from mailer.mailing.service import REPLAN_FIELDS
from mailer.message import counters


class ForecastBasis(msgspec.Struct, frozen=True):
    """The data that a forecast is computed from, at the moment `at`."""

    mailing: NewMailing | Mailing
    """The mailing, with its changes if the forecast is for a change."""
    clients: Mapping[str, int]
    """Clients still to be reached, by time zone."""
    at: datetime
    rate: float | None
    """Messages a second for all mailings together; None when it is not known."""
    messages_of_others: Sequence[int]
    """Messages that each of the other running mailings still has to send."""


async def read_draft_basis(
    connection: AsyncConnection,
    draft: NewMailing,
    throughput: Throughput | None,
    workers: int = 1,
) -> ForecastBasis:
    """Read the basis of the forecast of a mailing that is not saved yet.

    `throughput` is that of one worker, and `workers` the number of workers. If `throughput` is None
    or not measured yet, the forecast considers sending windows only.
    """
    load = await read_load(connection, [])
    clients = await audience.count_by_zone(connection, draft.client_filter)
    rate = _total_rate(throughput, workers)
    return ForecastBasis(draft, clients, load.now, rate, load.messages_of_others(None))


async def read_basis(
    connection: AsyncConnection,
    mailing: Mailing,
    throughput: Throughput | None,
    workers: int = 1,
    changes: MailingChange | None = None,
) -> ForecastBasis | None:
    """Read the basis of the forecast of a mailing from now on. Parameters as in `read_draft_basis`.

    Return None when the mailing has ended. Return None too when it is paused or held, because it is
    not known when it continues.

    With `changes`, read the basis for the mailing as changed. If that is paused or held, its
    forecast considers sending windows only. Messages that failed permanently or are cancelled are
    not counted, unless the change replans them.
    """
    load = await read_load(connection, [mailing.id])
    return await _read_with_load(
        connection, mailing, load, _total_rate(throughput, workers), changes
    )


async def read_running_bases(
    connection: AsyncConnection,
    running: Sequence[Mailing],
    throughput: Throughput | None,
    workers: int = 1,
) -> list[tuple[Mailing, ForecastBasis | None]]:
    """Read the bases of the forecasts of running mailings, each with its mailing.

    See `read_basis`; here the load is read only once.
    """
    load = await read_load(connection, [mailing.id for mailing in running])
    rate = _total_rate(throughput, workers)
    return [
        (mailing, await _read_with_load(connection, mailing, load, rate)) for mailing in running
    ]


def _total_rate(throughput: Throughput | None, workers: int) -> float | None:
    """Return the messages a second of all workers together; None when it is not known."""
    if throughput is None or throughput.rate is None:
        return None
    return throughput.rate * workers


async def _read_with_load(
    connection: AsyncConnection,
    before: Mailing,
    load: GatewayLoad,
    rate: float | None,
    changes: MailingChange | None = None,
) -> ForecastBasis | None:
    """Do what `read_basis` does, for a known load. `before` is the mailing without `changes`."""
    mailing = before if changes is None else replace(before, **changes.provided_values())
    if mailing.has_ended or mailing.datetime_end <= load.now:
        return None
    if mailing.status == "paused" or mailing.held:
        if changes is None:
            return None
        rate = None  # consider sending windows only
    must_replan = any(getattr(mailing, name) != getattr(before, name) for name in REPLAN_FIELDS)
    if mailing.id not in load.started:
        clients = await audience.count_by_zone(connection, mailing.client_filter)
    elif must_replan:
        clients = await _count_remaining_after_replan(connection, mailing)
    else:
        clients = await _count_remaining(
            connection, mailing, is_enqueuing=mailing.id in load.enqueuing
        )
    return ForecastBasis(mailing, clients, load.now, rate, load.messages_of_others(mailing.id))


async def _count_remaining(
    connection: AsyncConnection, mailing: Mailing, *, is_enqueuing: bool
) -> dict[str, int]:
    """Return how many clients are still to be reached, by time zone.

    While the audience is being enqueued, these are all matching clients without an outcome. They
    include clients who have joined the directory since the start: counters do not distinguish them.
    """
    counts_by_zone = await counters.get_by_zone(connection, mailing.id)
    remaining = {zone: counts.waiting for zone, counts in counts_by_zone.items()}
    if not is_enqueuing:
        return remaining
    matching = await audience.count_by_zone(connection, mailing.client_filter)
    for zone, clients in matching.items():
        counts = counts_by_zone.get(zone, counters.Counters())
        # messages that wait are sent, even if their clients do not match any more
        remaining[zone] = max(counts.waiting, clients - counts.outcomes.total)
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
    remaining = await audience.count_by_zone(connection, mailing.client_filter)
    for zone, counts in counts_by_zone.items():
        done = counts.outcomes.total - counts.outcomes.cancelled
        remaining[zone] = max(0, remaining.get(zone, 0) - done)
    return remaining
