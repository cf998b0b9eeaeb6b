"""The expected cost of a mailing, and what its placeholders become, for its page."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.forecast.cost import Cost
from mailer.forecast.cost_estimate import estimate_cost
from mailer.gateway.channel import Channels
from mailer.mailing.model import Mailing, excluded_opt_outs


async def read_expected_cost(
    connection: AsyncConnection, mailing: Mailing, channels: Channels, parts: float
) -> Cost | None:
    """Return the cost if each client of the audience gets `parts` parts; None if it is not known.

    Clients who have opted out of it cost nothing.
    """
    return await estimate_cost(
        connection,
        mailing.client_filter,
        mailing.gateway,
        parts,
        channels,
        opted_out=excluded_opt_outs(mailing.purpose),
    )


async def read_text_variables(
    engine: AsyncEngine, channels: Channels, page: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the variables about the placeholders of a mailing; `page` are those of its page."""
    mailing, reach = page["mailing"], page["reach"]
    if reach is None:
        return {"text_cost": None}
    async with engine.connect() as connection:
        cost = await read_expected_cost(connection, mailing, channels, reach.average_parts)
    return {"text_cost": cost}
