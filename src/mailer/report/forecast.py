"""What is to be expected of a mailing, by counts alone: no message is read, nor any client."""

from collections.abc import Mapping
from datetime import time
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.gateway.pace import Pace
from mailer.mailing import audience
from mailer.mailing import store as mailings
from mailer.mailing.forecast import Crowd, Forecast, forecast
from mailer.mailing.model import ENDED, Mailing, NewMailing
from mailer.mailing.window import Window
from mailer.message import tally
from mailer.report.snapshot import snapshot

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
    return _forecast(draft, clients, facts, _rate(pace, processes))


async def of_mailing(
    engine: AsyncEngine, mailing_id: int, pace: Pace | None, processes: int = 1
) -> Forecast | None:
    """Return what is to be expected of a mailing from now on; None when it has ended.

    Of one that is paused, if it were resumed now. What is given up already is not counted. Raises
    `MailingNotFoundError`.
    """
    async with snapshot(engine) as connection:
        mailing = await mailings.get(connection, mailing_id)
        facts = await _look(connection, mailing_id)
        if mailing.status in ENDED or mailing.datetime_end <= facts.now:
            return None
        if not facts.has_begun:
            clients = await audience.count_by_zone(connection, mailing.client_filter)
        else:
            clients = await _left(connection, mailing, is_taking=facts.is_taking)
    return _forecast(mailing, clients, facts, _rate(pace, processes))


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


def _rate(pace: Pace | None, processes: int) -> float | None:
    """Return the messages a second of all processes together."""
    if pace is None or pace.rate is None:
        return None
    return pace.rate * processes


def _forecast(
    plan: NewMailing | Mailing, clients: Mapping[str, int], facts: Row[Any], rate: float | None
) -> Forecast:
    return forecast(
        [Crowd(zone, count) for zone, count in clients.items()],
        start=plan.datetime_start,
        end=plan.datetime_end,
        window=_window(plan.send_interval_time_start, plan.send_interval_time_end),
        at=facts.now,
        rate=rate,
        others=facts.others,
    )


def _window(opens: str | None, closes: str | None) -> Window | None:
    if opens is None or closes is None:
        return None
    return Window(time.fromisoformat(opens), time.fromisoformat(closes))
