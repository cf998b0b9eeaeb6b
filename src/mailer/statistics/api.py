"""API routes of statistics and of the metrics."""

import asyncio
from typing import Annotated

import msgspec
from litestar import Controller, Response, get
from litestar.di import NamedDependency
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer import metrics
from mailer.db.engine import is_unavailable
from mailer.errors import UnavailableError
from mailer.gateway.channel import Channels
from mailer.gateway_control.store import count_deliveries_by_period
from mailer.mailing.api import MailingId
from mailer.statistics import backlog
from mailer.statistics import service as statistics
from mailer.statistics.model import GeneralStatistics, MailingStatistics
from mailer.validation import Input
from mailer.web.query import accepts_query
from mailer.web.startup_gate import Startup

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4"
"""Prometheus' text format, which all its versions read."""
BACKLOG_TIMEOUT = 3.0
"""Seconds to wait for the backlog from the database. Prometheus itself times out after 10 s."""


class StatisticsQuery(Input, frozen=True, kw_only=True):
    """Parameters of the statistics of a mailing."""

    bucket: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=31_536_000,
                description="Length of a bucket of `over_time` in seconds. Default: the shortest"
                " suitable length with at most 500 buckets. Results are counted by the second. When"
                " the time from the first to the last result exceeds half an hour, they are counted"
                " by 10 s; beyond 5 hours by 1 minute, beyond 30 hours by 10 minutes, beyond 300"
                " hours by 1 hour. The length must be a multiple of that.",
                examples=[60],
                extra={"rule": "must be a number of seconds from 1 to 31536000"},
            ),
        ]
        | UnsetType
    ) = UNSET


@get("/metrics", include_in_schema=False, required_scope="monitoring")
async def show_metrics(
    engine: NamedDependency[AsyncEngine],
    startup: NamedDependency[Startup],
    channels: NamedDependency[Channels],
) -> Response[bytes]:
    """Return metrics in Prometheus' text format, also while the database is unavailable."""
    is_database_up, current_backlog = False, None
    deliveries: metrics.DeliveryNumbers = {}
    try:
        startup.ensure_done()
        async with asyncio.timeout(BACKLOG_TIMEOUT), engine.connect() as connection:
            is_database_up = True  # there is a connection; the query may still take too long
            deliveries = await count_deliveries_by_period(connection, channels)
            current_backlog = msgspec.structs.asdict(await backlog.get_backlog(connection))
    except Exception as error:  # an unavailable database raises many kinds of errors
        if not is_unavailable(error) and not isinstance(error, UnavailableError):
            raise
    return Response(
        metrics.exposition(current_backlog, deliveries, is_up=is_database_up),
        media_type=METRICS_CONTENT_TYPE,
    )


class StatisticsController(Controller):
    """Counts of mailings and messages."""

    path = "/"
    tags = ("statistics",)

    @get("/statistics", required_scope="read")
    async def get_statistics(self, engine: NamedDependency[AsyncEngine]) -> GeneralStatistics:
        """Return counts of all mailings and all messages by status."""
        return await statistics.general(engine)

    @get(
        "/mailings/{mailing_id:int}/statistics",
        required_scope="read",
        **accepts_query(StatisticsQuery),
    )
    async def get_mailing_statistics(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        mailing_id: MailingId,
        query_params: NamedDependency[StatisticsQuery],
    ) -> MailingStatistics:
        """Return counts of a mailing's messages by status, reason, operator code, zone and time.

        The forecast of the end uses the throughput of the gateway.
        """
        bucket = None if query_params.bucket is UNSET else query_params.bucket
        return await statistics.of_mailing(engine, mailing_id, bucket, channels=channels)
