"""How many clients a mailing reaches, and how many more with another filter."""

from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.mailing import audience
from mailer.mailing.client_filter import ClientFilter
from mailer.mailing.field_types import Purpose
from mailer.mailing.model import Mailing, excluded_opt_outs


async def count_reached(
    connection: AsyncConnection, client_filter: ClientFilter, purpose: Purpose
) -> int:
    """Return how many clients a mailing would reach now, without those who have opted out of it."""
    opted_out = excluded_opt_outs(purpose)
    return await audience.count(connection, client_filter, opted_out=opted_out)


async def count_more(
    connection: AsyncConnection, mailing: Mailing, client_filter: ClientFilter
) -> int:
    """Return how many more clients a started mailing would reach with another filter.

    These are clients whom only the new filter matches, and those who have joined the directory
    since the start: after a change of the filter the audience is enqueued again.
    """
    filters = (client_filter, mailing.client_filter)
    opted_out = excluded_opt_outs(mailing.purpose)
    reached = await count_reached(connection, client_filter, mailing.purpose)
    reached_by_both = await audience.count_both(connection, *filters, opted_out=opted_out)
    matched_by_both = await audience.count_both(connection, *filters)
    joined = max(0, matched_by_both - mailing.clients_count)
    return reached - reached_by_both + joined
