"""API routes of statistics and of the gateway's status."""

import asyncio
from typing import Annotated

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer import metrics
from mailer.db.engine import is_unavailable
from mailer.errors import UnavailableError
from mailer.gateway.breaker import GatewayStatus
from mailer.gateway.channel import Channel
from mailer.mailing.api import MailingId
from mailer.statistics import backlog
from mailer.statistics import service as statistics
from mailer.statistics.model import GeneralStatistics, MailingStatistics
from mailer.validation import Input
from mailer.web.query import accepts_query
from mailer.web.startup_gate import Startup

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4"
SNAPSHOT_TIMEOUT = 3.0
"""Seconds to wait for counts from the database. Prometheus itself times out after 10 s."""


class StatisticsQuery(Input, frozen=True, kw_only=True):
    """Parameters of the statistics of a mailing."""

    bucket: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=31_536_000,
                description="Length of a bucket of `over_time` in seconds. Default: the shortest"
                " suitable length with at most 500 buckets. The longer outcomes span, the coarser"
                " they are counted: by 10 s when they span more than half an hour, by 1 minute over"
                " 5 hours, by 10 minutes over 30 hours, by 1 hour over 300 hours. A bucket must be"
                " a multiple of that.",
                examples=[60],
                extra={"rule": "must be a number of seconds from 1 to 31536000"},
            ),
        ]
        | UnsetType
    ) = UNSET


@get("/metrics", include_in_schema=False, required_scope="monitoring")
async def show_metrics(
    engine: NamedDependency[AsyncEngine], startup: NamedDependency[Startup]
) -> Response[bytes]:
    """Return metrics in Prometheus' text format, also while the database is unavailable.

    All versions of Prometheus read this format.
    """
    is_database_up, current_backlog = False, None
    try:
        startup.ensure_done()
        async with asyncio.timeout(SNAPSHOT_TIMEOUT), engine.connect() as connection:
            is_database_up = True  # the pool returned an open connection
            current_backlog = await backlog.get_backlog(connection)
    except Exception as error:  # an unavailable database raises many kinds of errors
        if not is_unavailable(error) and not isinstance(error, UnavailableError):
            raise
    return Response(
        metrics.exposition(current_backlog, is_up=is_database_up), media_type=METRICS_CONTENT_TYPE
    )


class StatisticsController(Controller):
    """Counts of mailings and messages."""

    path = "/"
    tags = ("statistics",)

    @get("/statistics", required_scope="read")
    async def get_statistics(self, engine: NamedDependency[AsyncEngine]) -> GeneralStatistics:
        """Return counts of all mailings and all messages by status."""
        return await statistics.general(engine)

    @get("/gateway", required_scope="read")
    async def get_gateway(self, channel: NamedDependency[Channel | None]) -> GatewayStatus:
        """Return the status of the gateway as this worker sees it: breaker, outage and failures."""
        return GatewayStatus(is_set=False) if channel is None else channel.breaker.status()

    @get(
        "/mailings/{mailing_id:int}/statistics",
        required_scope="read",
        **accepts_query(StatisticsQuery),
    )
    async def get_mailing_statistics(
        self,
        engine: NamedDependency[AsyncEngine],
        channel: NamedDependency[Channel | None],
        mailing_id: MailingId,
        query_params: NamedDependency[StatisticsQuery],
    ) -> MailingStatistics:
        """Return counts of a mailing's messages by status, reason, operator code, zone and time."""
        bucket = None if query_params.bucket is UNSET else query_params.bucket
        return await statistics.of_mailing(engine, mailing_id, bucket, channel=channel)
