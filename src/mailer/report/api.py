"""Routes of statistics, and of how it goes with the gateway."""

import asyncio
from typing import Annotated

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer import metrics
from mailer.db.engine import is_away
from mailer.errors import UnavailableError
from mailer.gateway.breaker import Breaker, GatewayStatus
from mailer.gateway.pace import Pace
from mailer.mailing.query import MailingId
from mailer.report import backlog, statistics
from mailer.report.model import GeneralStatistics, MailingStatistics
from mailer.validation import Input
from mailer.web.query import takes
from mailer.web.starting import Startup

METRICS = "text/plain; version=0.0.4"
PATIENCE = 3.0
"""Seconds to wait for what is counted in the database: Prometheus gives up after ten."""


class StatisticsQuery(Input, frozen=True, kw_only=True):
    """How to count a mailing's messages."""

    bucket: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=31_536_000,
                description="Seconds of a bucket of `over_time`; unless given, as many as make at"
                " most 500 buckets. Outcomes that span more than half an hour are counted by 10 s,"
                " more than 5 hours by the minute, more than 30 hours by 10 minutes, more than 300"
                " hours by the hour; a bucket is a multiple of that.",
                examples=[60],
                extra={"rule": "must be a number of seconds from 1 to 31536000"},
            ),
        ]
        | UnsetType
    ) = UNSET


@get("/metrics", include_in_schema=False, needs="monitoring")
async def show_metrics(
    engine: NamedDependency[AsyncEngine], startup: NamedDependency[Startup]
) -> Response[bytes]:
    """Answer in Prometheus' text format, which every version reads; also with the database away."""
    is_up, waiting = False, None
    try:
        startup.ensure_done()
        async with asyncio.timeout(PATIENCE), engine.connect() as connection:
            is_up = True  # it was asked something before it was given
            waiting = await backlog.look(connection)
    except Exception as error:
        if not is_away(error) and not isinstance(error, UnavailableError):
            raise
    return Response(metrics.exposition(waiting, is_up=is_up), media_type=METRICS)


class StatisticsController(Controller):
    """Counts of mailings and messages."""

    path = "/"
    tags = ("statistics",)

    @get("/statistics", needs="read")
    async def get_statistics(self, engine: NamedDependency[AsyncEngine]) -> GeneralStatistics:
        """Count all mailings and all messages by status."""
        return await statistics.general(engine)

    @get("/gateway", needs="read")
    async def get_gateway(self, breaker: NamedDependency[Breaker | None]) -> GatewayStatus:
        """Return how this process gets on with the gateway, and since when and why it waits."""
        return GatewayStatus(is_set=False) if breaker is None else breaker.status()

    @get("/mailings/{mailing_id:int}/statistics", needs="read", **takes(StatisticsQuery))
    async def get_mailing_statistics(
        self,
        engine: NamedDependency[AsyncEngine],
        breaker: NamedDependency[Breaker | None],
        pace: NamedDependency[Pace | None],
        mailing_id: MailingId,
        asked: NamedDependency[StatisticsQuery],
    ) -> MailingStatistics:
        """Count a mailing's messages by status and reason, operator code, time zone, and time."""
        bucket = None if asked.bucket is UNSET else asked.bucket
        return await statistics.of_mailing(engine, mailing_id, bucket, breaker=breaker, pace=pace)
