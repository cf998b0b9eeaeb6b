"""What is to be expected of a mailing, by counts alone: no message is read, nor any client."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import msgspec
from msgspec.structs import replace
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db import processes as processes_of
from mailer.gateway.pace import Pace
from mailer.mailing import audience
from mailer.mailing import store as mailings
from mailer.mailing.forecast import Crowd, Forecast, forecast
from mailer.mailing.model import ENDED, Mailing, MailingChange, NewMailing
from mailer.mailing.service import PLANNED_BY
from mailer.mailing.window import window_between
from mailer.message import tally
from mailer.report.snapshot import snapshot

FEW_ZONES = 20
"""Time zones of an audience whose forecast takes a few milliseconds: not worth a thread."""

# Of the others what they have waiting, and what is still to be taken of their audiences; of the
# mailing itself whether its audience is being taken: that of one planned anew is, once more.
LOOK = text("""
    WITH live AS (
        SELECT id, status, scheduled + sending AS waiting,
            CASE WHEN audience_cursor < audience_until AND NOT replanning THEN greatest(0,
                clients_count - scheduled - sending - delivered - undelivered - "unknown"
                    - cancelled) ELSE 0 END AS untaken,
            audience_until IS NOT NULL AS has_begun, audience_cursor < audience_until AS is_taking
        FROM mailing JOIN ledger ON mailing_id = id
        WHERE NOT is_settled AND deleted_at IS NULL
    )
    SELECT clock_timestamp() AS now,
        coalesce(array_agg(waiting + untaken) FILTER (
            WHERE status = 'running' AND id IS DISTINCT FROM :mailing_id), '{}') AS others,
        coalesce(bool_or(has_begun) FILTER (WHERE id = :mailing_id), false) AS has_begun,
        coalesce(bool_or(is_taking) FILTER (WHERE id = :mailing_id), false) AS is_taking
    FROM live""")


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
    """Return what is to be expected of a mailing that is not saved, were it now.

    `pace` is one process', of so many that send; None or one that is not known yet: what the
    windows alone decide.
    """
    async with snapshot(engine) as connection:
        facts = await _look(connection, None)
        clients = await audience.count_by_zone(connection, draft.client_filter)
    return await _forecast(draft, clients, facts, _rate(pace, processes))


async def of_mailing(
    engine: AsyncEngine,
    mailing_id: int,
    pace: Pace | None,
    processes: int = 1,
    changes: MailingChange | None = None,
) -> Forecast | None:
    """Return what is to be expected of a mailing; raises `MailingNotFoundError`."""
    async with snapshot(engine) as connection:
        mailing = await mailings.get(connection, mailing_id)
        return await from_now_on(connection, mailing, pace, processes, changes)


async def from_now_on(
    connection: AsyncConnection,
    before: Mailing,
    pace: Pace | None,
    processes: int = 1,
    changes: MailingChange | None = None,
) -> Forecast | None:
    """Return what is to be expected of a mailing from now on; None when it has ended.

    Of one that is paused, if it were resumed now; with `changes`, if it were changed so. What is
    given up already is not counted, unless a change plans it anew.
    """
    mailing = before if changes is None else replace(before, **changes.given())
    facts = await _look(connection, mailing.id)
    if mailing.status in ENDED or mailing.datetime_end <= facts.now:
        return None
    if not facts.has_begun:
        clients = await audience.count_by_zone(connection, mailing.client_filter)
    elif any(getattr(mailing, name) != getattr(before, name) for name in PLANNED_BY):
        clients = await _left_anew(connection, mailing)
    else:
        clients = await _left(connection, mailing, is_taking=facts.is_taking)
    return await _forecast(mailing, clients, facts, _rate(pace, processes))


async def _look(connection: AsyncConnection, mailing_id: int | None) -> Row[Any]:
    return (await connection.execute(LOOK, {"mailing_id": mailing_id})).one()


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


def _rate(pace: Pace | None, processes: int) -> float | None:
    """Return the messages a second of all processes together."""
    if pace is None or pace.rate is None:
        return None
    return pace.rate * processes


async def _forecast(
    plan: NewMailing | Mailing, clients: Mapping[str, int], facts: Row[Any], rate: float | None
) -> Forecast:
    """Simulate in a thread, one forecast at a time: many zones would block the event loop."""
    work = partial(
        forecast,
        [Crowd(zone, count) for zone, count in clients.items()],
        start=plan.datetime_start,
        end=plan.datetime_end,
        window=window_between(plan.send_interval_time_start, plan.send_interval_time_end),
        at=facts.now,
        rate=rate,
        others=facts.others,
    )
    if len(clients) <= FEW_ZONES:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_thread(), work)


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="forecast")
