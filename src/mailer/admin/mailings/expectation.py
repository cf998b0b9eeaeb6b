"""The forecast that a question shows before a mailing is launched."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db import workers as database_workers
from mailer.forecast import service as forecasts
from mailer.forecast.model import Forecast
from mailer.forecast.throughput import usable_gateways
from mailer.gateway.channel import Channels
from mailer.mailing.model import Mailing, MailingChange, NewMailing
from mailer.mailing.text_reach import TextReach


async def expect(
    engine: AsyncEngine,
    channels: Channels,
    mailing: Mailing | NewMailing,
    reach: TextReach | None,
    changes: Mapping[str, Any] | None = None,
) -> Forecast:
    """Return the forecast of a mailing that has not started, with `changes`.

    `reach` is that of its text, if it has placeholders.
    """
    fields = {name: getattr(mailing, name) for name in MailingChange.__struct_fields__}
    launched = NewMailing(**{**fields, **(changes or {})})
    async with engine.connect() as connection:
        workers = len(await database_workers.active_workers(connection)) or 1
    gateways = usable_gateways(channels)
    return await forecasts.of_unsaved(engine, launched, gateways, workers, reach)
