"""What is to be expected of a mailing, by counts alone: no message is read, nor any client.

First what a forecast rests on is read from the database (`read`, `read_draft`, `read_running`),
then the forecast is computed (`compute`), which may take a while and holds no connection.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from weakref import WeakKeyDictionary

import msgspec
from msgspec.structs import replace
from sqlalchemy import ARRAY, BigInteger, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db import processes as processes_of
from mailer.gateway.breaker import Breaker
from mailer.gateway.pace import Pace
from mailer.mailing import audience
from mailer.mailing import store as mailings
from mailer.mailing.forecast import Crowd, Forecast, forecast
from mailer.mailing.model import ENDED, Mailing, MailingChange, NewMailing
from mailer.mailing.service import PLANNED_BY
from mailer.mailing.window import window_between
from mailer.message import tally
from mailer.report.snapshot import snapshot
from mailer.time_slices import run_in_slices

# Of running mailings what they have waiting, and what is still to be taken of their audiences; of
# those asked for whether they have begun, and whether the audience is being taken: that of one
# planned anew is, once more.
LOOK = text("""
    WITH live AS (
        SELECT id, status, scheduled + sending AS waiting, id = ANY (:asked) AS is_asked,
            CASE WHEN audience_cursor < audience_until AND NOT replanning THEN greatest(0,
                clients_count - scheduled - sending - delivered - undelivered - "unknown"
                    - cancelled) ELSE 0 END AS untaken,
            audience_until IS NOT NULL AS has_begun, audience_cursor < audience_until AS is_taking
        FROM mailing JOIN ledger ON mailing_id = id
        WHERE NOT is_settled AND deleted_at IS NULL
    )
    SELECT clock_timestamp() AS now,
        coalesce(array_agg(id) FILTER (WHERE status = 'running'), '{}') AS running,
        coalesce(array_agg(waiting + untaken) FILTER (WHERE status = 'running'), '{}') AS waiting,
        coalesce(array_agg(id) FILTER (WHERE is_asked AND has_begun), '{}') AS begun,
        coalesce(array_agg(id) FILTER (WHERE is_asked AND is_taking), '{}') AS taking
    FROM live""").bindparams(bindparam("asked", type_=ARRAY(BigInteger)))


class Load(msgspec.Struct, frozen=True):
    """What mailer has to send at one moment."""

    now: datetime
    waiting: Mapping[int, int]
    """Messages that each running mailing still has to send."""
    begun: frozenset[int]
    """Of the mailings asked for those that have begun."""
    taking: frozenset[int]
    """Of those the ones whose audience is being taken."""

    def of_others(self, mailing_id: int | None) -> list[int]:
        """Return what each of the other running mailings has to send."""
        return [count for each, count in self.waiting.items() if each != mailing_id]


class Basis(msgspec.Struct, frozen=True):
    """What a forecast is computed from, as it was at one moment."""

    plan: NewMailing | Mailing
    clients: Mapping[str, int]
    """Those still to be reached, by time zone."""
    at: datetime
    rate: float | None
    """Messages a second for all mailings together; None while it is not known."""
    others: Sequence[int]
    """Messages that each of the other running mailings still has to send."""


class Sharing(msgspec.Struct, frozen=True):
    """By whom a mailing's messages are sent, and with how many others it shares them."""

    processes: int
    """At least one, also where none sends: it is as if one did."""
    others: int
    """Other mailings that are running."""
    is_set: bool
    """Whether the rate is a limit that is set, rather than what was seen."""


async def sharing(
    connection: AsyncConnection, pace: Pace | None, mailing: Mailing | None = None
) -> Sharing:
    """Return by whom a mailing is sent, or would be one that is not saved."""
    at_work = await processes_of.at_work(connection)
    running = await mailings.count(connection, "running")
    is_running = mailing is not None and mailing.status == "running"
    return Sharing(len(at_work) or 1, running - is_running, pace is not None and pace.is_set)


async def of_draft(
    engine: AsyncEngine, draft: NewMailing, pace: Pace | None, processes: int = 1
) -> Forecast:
    """Return what is to be expected of a mailing that is not saved, were it now."""
    async with snapshot(engine) as connection:
        basis = await read_draft(connection, draft, pace, processes)
    return await _compute(basis)


async def of_mailing(
    engine: AsyncEngine,
    mailing_id: int,
    pace: Pace | None,
    processes: int = 1,
    changes: MailingChange | None = None,
) -> Forecast | None:
    """Return what is to be expected of a mailing, as `read` says.

    Raises `MailingNotFoundError`.
    """
    async with snapshot(engine) as connection:
        mailing = await mailings.get(connection, mailing_id)
        basis = await read(connection, mailing, pace, processes, changes)
    return await compute(basis)


async def read_draft(
    connection: AsyncConnection, draft: NewMailing, pace: Pace | None, processes: int = 1
) -> Basis:
    """Read what the forecast of a mailing rests on that is not saved, were it now.

    `pace` is one process', of so many that send; None or one that is not known yet: what the
    windows alone decide.
    """
    load = await _look(connection, [])
    clients = await audience.count_by_zone(connection, draft.client_filter)
    return Basis(draft, clients, load.now, _rate(pace, processes), load.of_others(None))


async def read(
    connection: AsyncConnection,
    before: Mailing,
    pace: Pace | None,
    processes: int = 1,
    changes: MailingChange | None = None,
) -> Basis | None:
    """Read what the forecast of a mailing from now on rests on.

    None when it has ended, and while it is paused or held: nobody knows when it goes on. With
    `changes`, if it were changed so, by the hours alone while it is paused or held. What is given
    up already is not counted, unless a change plans it anew.
    """
    load = await _look(connection, [before.id])
    return await _read(connection, before, load, _rate(pace, processes), changes)


async def read_running(
    connection: AsyncConnection, running: Sequence[Mailing], pace: Pace | None, processes: int = 1
) -> list[tuple[Mailing, Basis | None]]:
    """Read what the forecasts of running mailings rest on, each with its mailing: see `read`."""
    load = await _look(connection, [mailing.id for mailing in running])
    rate = _rate(pace, processes)
    return [(mailing, await _read(connection, mailing, load, rate)) for mailing in running]


async def compute(basis: Basis | None) -> Forecast | None:
    """Return what is to be expected; None of None. To be awaited with no connection held.

    Many time zones take a tenth of a second, in slices between which the event loop does other
    work. Forecasts are computed one at a time: together they would leave it too little.
    """
    return None if basis is None else await _compute(basis)


async def _compute(basis: Basis) -> Forecast:
    plan = basis.plan
    window = window_between(plan.send_interval_time_start, plan.send_interval_time_end)
    async with turn():
        return await run_in_slices(
            forecast(
                [Crowd(zone, count) for zone, count in basis.clients.items()],
                start=plan.datetime_start,
                end=plan.datetime_end,
                window=window,
                at=basis.at,
                rate=basis.rate,
                others=basis.others,
            )
        )


_TURNS: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


def turn() -> asyncio.Lock:
    """Return the lock that whoever computes a forecast on the running event loop has."""
    return _TURNS.setdefault(asyncio.get_running_loop(), asyncio.Lock())


async def expected_ends(
    bases: Iterable[tuple[Mailing, Basis | None]],
) -> dict[int, datetime | None]:
    """Return when nothing will be left to send of each mailing, by its id: see `expected_end`."""
    return {mailing.id: expected_end(mailing, await compute(basis)) for mailing, basis in bases}


def expected_end(mailing: Mailing, expected: Forecast | None) -> datetime | None:
    """Return when nothing will be left to send of a running mailing, by its forecast.

    At the latest its end, when the rest expires. None while that is not known: before the start,
    while it is paused or held, while no rate is known, and when it is too far ahead.
    """
    if mailing.status != "running" or expected is None or expected.rate is None:
        return None
    if not expected.clients or expected.waiting:
        return None
    return mailing.datetime_end if expected.missed else expected.done_at


async def _read(
    connection: AsyncConnection,
    before: Mailing,
    load: Load,
    rate: float | None,
    changes: MailingChange | None = None,
) -> Basis | None:
    mailing = before if changes is None else replace(before, **changes.given())
    if mailing.status in ENDED or mailing.datetime_end <= load.now:
        return None
    if mailing.status == "paused" or mailing.held:
        if changes is None:
            return None
        rate = None  # a change is judged by the hours alone
    if mailing.id not in load.begun:
        clients = await audience.count_by_zone(connection, mailing.client_filter)
    elif any(getattr(mailing, name) != getattr(before, name) for name in PLANNED_BY):
        clients = await _left_anew(connection, mailing)
    else:
        clients = await _left(connection, mailing, is_taking=mailing.id in load.taking)
    return Basis(mailing, clients, load.now, rate, load.of_others(mailing.id))


async def _look(connection: AsyncConnection, asked: Sequence[int]) -> Load:
    row = (await connection.execute(LOOK, {"asked": list(asked)})).one()
    return Load(
        row.now,
        dict(zip(row.running, row.waiting, strict=True)),
        frozenset(row.begun),
        frozenset(row.taking),
    )


async def _left(
    connection: AsyncConnection, mailing: Mailing, *, is_taking: bool
) -> dict[str, int]:
    """Return those who are still to be reached, by time zone.

    While the audience is taken: all who match and have no outcome yet. Who joins meanwhile is
    counted too, for want of a count that tells them apart.
    """
    tallies = await tally.of_zones(connection, mailing.id)
    left = {zone: found.waiting for zone, found in tallies.items()}
    if not is_taking:
        return left
    matching = await audience.count_by_zone(connection, mailing.client_filter)
    for zone, clients in matching.items():
        found = tallies.get(zone, tally.Tally())
        left[zone] = max(found.waiting, clients - (found.messages - found.waiting))
    return left


async def _left_anew(connection: AsyncConnection, mailing: Mailing) -> dict[str, int]:
    """Return those who are still to be reached once all are planned anew, by time zone.

    They are all who match and were not sent to. Who joined the directory since, or was sent to and
    matches no more, is not told apart for want of a count that does.
    """
    tallies = await tally.of_zones(connection, mailing.id)
    left = await audience.count_by_zone(connection, mailing.client_filter)
    for zone, found in tallies.items():
        sent = found.delivered + found.undelivered + found.unknown
        left[zone] = max(0, left.get(zone, 0) - sent)
    return left


def usable_pace(pace: Pace | None, breaker: Breaker | None) -> Pace | None:
    """Return the pace to reckon with; None while the gateway takes nothing: then none is true."""
    return None if breaker is None or breaker.hold is not None else pace


def _rate(pace: Pace | None, processes: int) -> float | None:
    """Return the messages a second of all processes together."""
    if pace is None or pace.rate is None:
        return None
    return pace.rate * processes
