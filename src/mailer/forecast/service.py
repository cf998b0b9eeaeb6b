"""Forecasts of mailings.

First the basis of a forecast is read from the database (`mailer.forecast.basis`). Then `compute`
computes the forecast, which may take some time; meanwhile, no connection is held.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from weakref import WeakKeyDictionary

import msgspec
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db import workers as database_workers
from mailer.db.engine import snapshot
from mailer.forecast.basis import ForecastBasis, read_bases, read_basis, read_unsaved_basis
from mailer.forecast.model import Forecast, RecipientGroup, forecast
from mailer.forecast.throughput import usable_gateways
from mailer.forecast.tiers import Gateways
from mailer.gateway.channel import Channels
from mailer.mailing import listing
from mailer.mailing import store as mailings
from mailer.mailing.audience_overlap import AudienceOverlap
from mailer.mailing.model import Mailing, MailingChange, NewMailing
from mailer.mailing.search import MailingFilter
from mailer.mailing.text_reach import TextReach
from mailer.mailing.window import window_between
from mailer.time_slices import run_in_slices


class SendingCapacity(msgspec.Struct, frozen=True):
    """The workers that send a mailing's messages, and the mailings that share them.

    The pages show it under a forecast, to explain the rate of the forecast.
    """

    workers: int
    """Number of active workers; 1 when there are none, because forecasts assume one."""
    other_mailings: int
    """Number of other running mailings."""
    has_rate_limit: bool
    """Whether the rate is a limit from the settings rather than a measured rate."""


async def read_capacity(
    connection: AsyncConnection,
    gateways: Gateways,
    mailing: Mailing | None = None,
) -> SendingCapacity:
    """Return the sending capacity for a mailing. `mailing` is None if it is not saved yet.

    `gateways` are the usable ones.
    """
    active = await database_workers.active_workers(connection)
    running = await listing.count(connection, MailingFilter(statuses=("running",)))
    is_running = mailing is not None and mailing.status == "running"
    return SendingCapacity(
        workers=len(active) or 1,
        other_mailings=running - is_running,
        has_rate_limit=bool(gateways) and all(g.is_limited for g in gateways.values()),
    )


async def of_unsaved(
    engine: AsyncEngine,
    new: NewMailing,
    gateways: Gateways,
    workers: int = 1,
    reach: TextReach | None = None,
) -> Forecast:
    """Return the forecast of a mailing that is not saved yet; see `read_unsaved_basis`.

    `reach` is that of its text, if it has placeholders.
    """
    async with snapshot(engine) as connection:
        basis = await read_unsaved_basis(connection, new, gateways, workers)
    return await _compute(basis, reach)


async def of_mailing(  # noqa: PLR0913, PLR0917  # the mailing, its changes and its circumstances
    engine: AsyncEngine,
    mailing_id: int,
    gateways: Gateways,
    workers: int = 1,
    changes: MailingChange | None = None,
    reach: TextReach | None = None,
) -> Forecast | None:
    """Return the forecast of a mailing; see `read_basis`. Raises `MailingNotFoundError`.

    `reach` is that of its text, if it has placeholders.
    """
    async with snapshot(engine) as connection:
        mailing = await mailings.get(connection, mailing_id)
        basis = await read_basis(connection, mailing, gateways, workers, changes)
    return await compute(basis, reach)


async def read_current(
    connection: AsyncConnection, mailings: Sequence[Mailing], channels: Channels
) -> list[ForecastBasis | None]:
    """Read the bases of the forecasts of mailings from now on, for all that shows an estimate.

    `mailings` are as `with_holds` returns them, so that there is no forecast for a mailing that
    waits for a reason that may last.
    """
    active = await database_workers.active_workers(connection)
    return await read_bases(connection, mailings, usable_gateways(channels), len(active) or 1)


async def compute(basis: ForecastBasis | None, reach: TextReach | None = None) -> Forecast | None:
    """Return the forecast for a basis, or None for None. The caller must hold no connection.

    `reach` is that of the text, if it has placeholders: clients who do not get the text are left
    out, unless the mailing has started.

    A forecast for many time zones takes about 100 ms. It is computed in slices, between which the
    event loop does other work. Only one forecast is computed at a time, to leave enough time for
    that work.
    """
    return None if basis is None else await _compute(basis, reach)


async def _compute(basis: ForecastBasis, reach: TextReach | None) -> Forecast:
    mailing, groups = basis.mailing, basis.groups
    if basis.is_started:
        reach = None
    if reach is not None:
        groups = _who_get_the_text(groups, reach)
    window = window_between(mailing.send_interval_time_start, mailing.send_interval_time_end)
    async with computation_lock():
        computed = await run_in_slices(
            forecast(
                groups,
                start=mailing.datetime_start,
                end=mailing.datetime_end,
                window=window,
                at=basis.at,
                capacity=basis.capacity,
            )
        )
    return replace(
        computed,
        opted_out=basis.opted_out,
        lost=basis.lost,
        own_rate=mailing.rate,
        expected_end=_expected_end(mailing, computed),
        missing_field=0 if reach is None else reach.missing,
        text_too_long=0 if reach is None else reach.too_long,
        is_text_estimated=reach is not None and reach.is_estimate,
    )


def _who_get_the_text(groups: Sequence[RecipientGroup], reach: TextReach) -> list[RecipientGroup]:
    """Return groups without the clients who do not get the text, because of their fields.

    Each group is assumed to have the same share of them.
    """
    clients = sum(group.clients for group in groups)
    if not clients or not reach.unreached:
        return list(groups)
    getting = round(clients * max(0.0, 1 - reach.unreached / reach.clients))
    return [replace(group, clients=group.clients * getting / clients) for group in groups]


def without_capped(expected: Forecast | None, overlap: AudienceOverlap | None) -> Forecast | None:
    """Return a forecast without the clients who have reached the contact cap now.

    They are taken from the clients who would be reached, because their time zones are not known.
    """
    if expected is None or overlap is None or not overlap.at_cap:
        return expected
    at_cap = min(overlap.at_cap, expected.reached)
    return replace(
        expected,
        clients=expected.clients - at_cap,
        at_cap=at_cap,
        is_at_cap_estimated=overlap.is_estimate,
    )


_LOCKS: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


def computation_lock() -> asyncio.Lock:
    """Return the lock of the running event loop that is held while a forecast is computed."""
    return _LOCKS.setdefault(asyncio.get_running_loop(), asyncio.Lock())


def _expected_end(mailing: NewMailing | Mailing, expected: Forecast) -> datetime | None:
    """Return `Forecast.expected_end` of the forecast of a mailing."""
    if not isinstance(mailing, Mailing) or mailing.status != "running":
        return None
    # clients who are `waiting` are reached after the horizon
    if expected.rate is None or not expected.clients or expected.waiting:
        return None
    return mailing.datetime_end if expected.missed else expected.done_at
