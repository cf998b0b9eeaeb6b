"""The list of mailings, with search, filters and live updates."""

from collections.abc import Sequence
from typing import Annotated, Any

from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.response import ServerSentEvent
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.admin.listing import EMPTY_PAGE, page_links, read_list_query
from mailer.admin.live import LiveUpdates, Sections
from mailer.admin.render import PageContext
from mailer.gateway.channel import Channels
from mailer.mailing import store
from mailer.mailing.activity import with_holds
from mailer.mailing.api import MailingQuery
from mailer.mailing.model import Mailing
from mailer.mailing.search import MAX_COUNTED_MAILINGS
from mailer.statuses import MAILING_STATUSES
from mailer.validation import STORABLE, Input
from mailer.web.query import Limit, read_query


class MailingListQuery(MailingQuery, frozen=True, kw_only=True):
    """Filters of the list of mailings."""

    limit: Limit = 50
    search: (
        Annotated[
            str,
            Meta(
                max_length=200,
                pattern=STORABLE,
                extra={"rule": "must be at most 200 characters, without null characters"},
            ),
        ]
        | UnsetType
    ) = UNSET


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
        form, query = read_list_query(request, MailingListQuery, "search", "status", "limit")
        page, mailings = EMPTY_PAGE, list[Mailing]()
        if query is not None:
            async with engine.connect() as connection:
                page = await store.page(connection, query.position, **query.filters())
                mailings = await with_holds(
                    connection, [store.to_mailing(row) for row in page.rows], channels
                )
        return await context.render_page(
            "mailings/list.html",
            200 if query else 400,
            form=form,
            mailings=mailings,
            live_ids=unsettled_ids(mailings),
            count=page.count,
            max_counted=MAX_COUNTED_MAILINGS,
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
