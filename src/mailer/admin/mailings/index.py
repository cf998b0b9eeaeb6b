"""The list of mailings, with search, filters and live updates."""

from collections.abc import Sequence
from typing import Annotated, Any

from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.response import ServerSentEvent
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.admin.listing import EMPTY_PAGE, page_links, read_list_query
from mailer.admin.live import LiveUpdates, Sections
from mailer.admin.render import PageContext
from mailer.errors import InvalidError
from mailer.gateway.channel import Channels
from mailer.mailing import listing, store
from mailer.mailing.activity import with_holds
from mailer.mailing.list_query import MailingQuery
from mailer.mailing.listing import MAX_COUNTED_MAILINGS
from mailer.mailing.model import Mailing
from mailer.mailing.search import MailingFilter
from mailer.statuses import MAILING_STATUSES
from mailer.validation import Input
from mailer.web.query import Limit, read_query

FILTER_FIELDS = ("search", "status", "label", "from", "to", "sort", "limit")
"""Fields of the filter form, as in `MailingListQuery`."""


class MailingListQuery(MailingQuery, frozen=True, kw_only=True):
    """Filters of the list of mailings: those of the API, with fewer mailings on a page.

    Days are those of the viewer's time zone.
    """

    limit: Limit = 50


class LiveRowsQuery(Input, frozen=True, kw_only=True):
    """The rows of an open list that are updated live."""

    ids: Annotated[
        str,
        Meta(
            # up to 1,000 ids; `$` alone would allow a line feed at the end
            pattern=r"^[1-9][0-9]{0,14}(,[1-9][0-9]{0,14}){0,999}(?!\n)$",
            extra={"rule": "must be ids of mailings, separated by commas"},
        ),
    ]


def unsettled_ids(mailings: Sequence[Mailing]) -> list[int]:
    """Return the ids of the mailings whose counts or status may change without a user's action."""
    return [mailing.id for mailing in mailings if not mailing.is_settled]


class MailingList(Controller):
    """The list of mailings, newest first."""

    path = "/"

    @get("/mailings", required_scope="read")
    async def list_mailings(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
    ) -> Response[str]:
        """List the mailings that match the filters."""
        form, query = read_list_query(request, MailingListQuery, *FILTER_FIELDS)
        page, mailings = EMPTY_PAGE, list[Mailing]()
        conditions, order = MailingFilter(), None
        if query is not None:
            conditions = query.conditions(context.viewer.time_zone)
            order = query.order
            async with engine.connect() as connection:
                try:
                    page = await listing.page(connection, query.position, conditions, order)
                except InvalidError as error:  # too many to sort
                    form = form.with_errors(error)
                mailings = await with_holds(
                    connection, [store.to_mailing(row) for row in page.rows], channels
                )
        return await context.render_page(
            "mailings/list.html",
            400 if form.errors else 200,
            form=form,
            mailings=mailings,
            live_ids=unsettled_ids(mailings),
            count=page.count,
            max_counted=MAX_COUNTED_MAILINGS,
            is_bounded=conditions.has_words or conditions.has_period,
            orders=listing.possible_orders(conditions),
            order=order or listing.possible_orders(conditions)[0],
            pages=page_links(page, "/mailings", form),
            mailing_statuses=MAILING_STATUSES,
        )

    @get("/live/mailings", required_scope="read", is_polled=True)
    async def watch_mailings(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
        live: NamedDependency[LiveUpdates],
    ) -> ServerSentEvent:
        """Keep rows of the list up to date."""
        ids = [int(mailing_id) for mailing_id in read_query(request, LiveRowsQuery).ids.split(",")]

        async def sections() -> Sections:
            async with engine.connect() as connection:
                mailings = await with_holds(
                    connection, await store.get_many(connection, ids), channels
                )
            rows = {  # a mailing that is not found has been deleted
                mailing_id: context.render("mailings/deleted-row.html", mailing_id=mailing_id)
                for mailing_id in ids
            }
            rows |= {
                mailing.id: context.render("mailings/row.html", mailing=mailing)
                for mailing in mailings
            }
            return {f"mailing-{mailing_id}": row for mailing_id, row in rows.items()}

        return live.stream(("mailings", context.viewer, *ids), sections, context.quota_key)
