"""The API route of forecasts."""

from typing import Annotated, Any, ClassVar

import msgspec
from litestar import Controller, get
from litestar.di import NamedDependency
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.engine import snapshot
from mailer.forecast import service as forecasts
from mailer.forecast.model import Forecast
from mailer.gateway.channel import Channels
from mailer.mailing import store
from mailer.mailing.activity import with_holds
from mailer.mailing.api import MailingId
from mailer.mailing.audience import segments_read_once
from mailer.mailing.audience_overlap import AudienceOverlap, read_overlap
from mailer.mailing.text_reach import recent_text_reach
from mailer.settings import Settings


class MailingForecast(msgspec.Struct, frozen=True):
    """What is expected of a mailing: whom it reaches and when, and how it overlaps with others."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "forecast": {
            "clients": 938,
            "rate": 50.0,
            "done_at": "2030-01-15T06:00:19Z",
            "missed": 0,
            "shortfalls": [],
            "until": None,
            "waiting": 0,
            "without_gateway": 0,
            "opted_out": 5,
            "expected_end": None,
            "lost": 0,
            "at_cap": 45,
            "is_at_cap_estimated": False,
            "own_rate": None,
            "missing_field": 12,
            "text_too_long": 0,
            "is_text_estimated": False,
        },
        "overlap": {
            "clients": 1040,
            "contacted": 312,
            "at_cap": 45,
            "is_estimate": False,
            "shared": [
                {
                    "id": 2,
                    "name": "Winter sale",
                    "text": "Winter sale: 20 % off.",
                    "datetime_start": "2030-01-15T09:00:00Z",
                    "clients": 120,
                    "is_estimate": False,
                }
            ],
        },
    }

    forecast: Annotated[
        Forecast | None,
        Meta(description="Null if the mailing has ended, is paused, or waits for a gateway."),
    ]
    overlap: Annotated[
        AudienceOverlap | None,
        Meta(description="Null for a service mailing, and from the start of the mailing on."),
    ]


class ForecastController(Controller):
    """Forecasts of mailings."""

    path = "/mailings"
    tags = ("statistics",)

    @get("/{mailing_id:int}/forecast", required_scope="read")
    async def get_forecast(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        settings: NamedDependency[Settings],
        mailing_id: MailingId,
    ) -> MailingForecast:
        """Return when a mailing will be done, whom it will not reach, and why.

        Before the start, also how many clients lack a field of the text (`missing_field`) or would
        get too long a text (`text_too_long`), got a marketing message in the last 24 hours or have
        reached the contact cap now, and which other mailings share clients. For an audience above
        10,000 clients, these numbers of clients are estimates from a sample, and shared clients are
        if lists with more than 20,000 clients must be read for them. The numbers of the text may be
        30 seconds old. Once the mailing has started, they are 0: clients whose messages have ended
        so are among `lost`.
        """
        overlap = reach = None
        async with snapshot(engine) as connection:
            with segments_read_once():
                mailing = await store.get(connection, mailing_id)
                [mailing] = await with_holds(connection, [mailing], channels)
                [basis] = await forecasts.read_current(connection, [mailing], channels)
                is_upcoming = mailing.status in {"draft", "scheduled"}
                if mailing.purpose == "marketing" and is_upcoming:
                    overlap = await read_overlap(
                        connection,
                        mailing.client_filter,
                        settings.parsed_contact_cap,
                        mailing_id=mailing_id,
                        period=(mailing.datetime_start, mailing.datetime_end),
                    )
        if (template := mailing.template) is not None and is_upcoming:
            reach = await recent_text_reach(
                engine, template, mailing.client_filter, mailing.purpose
            )
        expected = await forecasts.compute(basis, reach)
        return MailingForecast(forecasts.without_capped(expected, overlap), overlap)
