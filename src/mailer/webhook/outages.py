"""Write the events `gateway.down`, `gateway.up` and `mailing.held`, once for all workers.

A gateway is down from the moment at which the first worker does not use it (its breaker is open,
the account has trouble, or a user has paused it) until no worker has said so for `FORGET_AFTER`
seconds. A mailing is held while all gateways that it may use are out for a worker. Both are kept in
tables, so that a change is reported by the one worker that writes it there first.
"""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ARRAY, DateTime, String, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.gateway.channel import Channels

FORGET_AFTER = 5
"""Seconds after the last worker reported an outage from which it is over. Each worker reports once
a second."""
ALL_GATEWAYS = ""
"""Stands in the table for all gateways of a worker together."""
WITHOUT_GATEWAY = "no_gateway"
"""Reason of a worker without any gateway."""
MAX_HELD = 1_000
"""Most mailings for which one run writes an event; the next run continues."""


class OutageReport(NamedTuple):
    """A gateway, or all together, that this worker does not use."""

    gateway: str
    reason: str
    since: datetime | None
    """None: from now on."""


def outages_of(channels: Channels) -> list[OutageReport]:
    """Return the gateways of a worker that it does not use now, in the order of their names."""
    reports = [
        OutageReport(channel.name, channel.outage.reason, channel.outage.since)
        for channel in channels
        if channel.outage is not None
    ]
    if not channels:
        reports.append(OutageReport(ALL_GATEWAYS, WITHOUT_GATEWAY, None))
    elif (outage := channels.outage()) is not None:
        reports.append(OutageReport(ALL_GATEWAYS, outage.reason, outage.since))
    return sorted(reports)


TIMESTAMP = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
# `xmax` is 0 in a row that was inserted and not updated.
REPORT = text(f"""
    WITH reported AS (
        INSERT INTO gateway_outage AS known (gateway, reason, since)
        SELECT gateway, reason, coalesce(since, now())
        FROM unnest(:gateways, :reasons, :sinces) AS outage (gateway, reason, since)
        ON CONFLICT (gateway) DO UPDATE SET seen_at = now(), reason = excluded.reason
        RETURNING gateway, reason, since, xmax = 0 AS is_new
    )
    SELECT add_webhook_event('gateway.down', json_build_object('gateway', gateway,
        'reason', reason, 'since', {TIMESTAMP.format("since")}))
    FROM reported WHERE is_new AND gateway <> '{ALL_GATEWAYS}'""").bindparams(  # noqa: S608  # constants
    bindparam("gateways", type_=ARRAY(String)),
    bindparam("reasons", type_=ARRAY(String)),
    bindparam("sinces", type_=ARRAY(DateTime(timezone=True))),
)
# A gateway that was removed from the configuration while it was down is forgotten in silence.
FORGET = text(f"""
    WITH over AS (
        DELETE FROM gateway_outage WHERE seen_at < now() - interval '{FORGET_AFTER} seconds'
        RETURNING gateway, since
    )
    SELECT add_webhook_event('gateway.up', json_build_object('gateway', gateway,
        'down_since', {TIMESTAMP.format("since")}))
    FROM over WHERE gateway = ANY (:configured)""").bindparams(  # noqa: S608  # constants
    bindparam("configured", type_=ARRAY(String))
)
HAS_HOLDS = text("""
    SELECT EXISTS (SELECT FROM mailing_hold)
        OR EXISTS (SELECT FROM gateway_outage)
            AND EXISTS (SELECT FROM webhook WHERE is_enabled AND 'mailing.held' = ANY (events))""")
RELEASE_MAILINGS = text("""
    DELETE FROM mailing_hold WHERE NOT EXISTS (
        SELECT FROM mailing
        JOIN gateway_outage ON gateway_outage.gateway = coalesce(mailing.gateway, '')
        WHERE mailing.id = mailing_id AND mailing.status = 'running' AND NOT is_closed
            AND deleted_at IS NULL)""")
HOLD_MAILINGS = text(f"""
    WITH held AS (
        INSERT INTO mailing_hold (mailing_id)
        SELECT mailing.id FROM mailing
        JOIN gateway_outage ON gateway_outage.gateway = coalesce(mailing.gateway, '')
        WHERE mailing.status = 'running' AND NOT is_closed AND deleted_at IS NULL
            AND NOT EXISTS (SELECT FROM mailing_hold WHERE mailing_id = mailing.id)
        ORDER BY mailing.id LIMIT {MAX_HELD}
        ON CONFLICT DO NOTHING
        RETURNING mailing_id
    )
    SELECT add_webhook_event('mailing.held', json_build_object('id', mailing.id,
        'name', mailing.name, 'gateway', mailing.gateway, 'reason', reason, 'since',
        {TIMESTAMP.format("greatest(gateway_outage.since, mailing.datetime_start)")}))
    FROM held JOIN mailing ON mailing.id = held.mailing_id
    JOIN gateway_outage ON gateway_outage.gateway = coalesce(mailing.gateway, '')""")  # noqa: S608  # constants


class OutageWatch:
    """Reports this worker's outages, and those that are over. A periodic job."""

    def __init__(self, engine: AsyncEngine, channels: Channels) -> None:
        self._engine = engine
        self._channels = channels

    async def run(self) -> None:
        """Report the outages of this moment."""
        async with self._engine.begin() as connection:
            await report(connection, self._channels)
            if (await connection.execute(HAS_HOLDS)).scalar_one():
                await connection.execute(RELEASE_MAILINGS)
                await connection.execute(HOLD_MAILINGS)


async def report(connection: AsyncConnection, channels: Channels) -> None:
    """Write the outages of a worker into the table, and remove those that no worker reports."""
    outages = outages_of(channels)
    if outages:
        values = {
            "gateways": [outage.gateway for outage in outages],
            "reasons": [outage.reason for outage in outages],
            "sinces": [outage.since for outage in outages],
        }
        await connection.execute(REPORT, values)
    configured = [channel.name for channel in channels]
    await connection.execute(FORGET, {"configured": configured})
