"""The list of replies, unread first, with search, filters and live updates."""

from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.response import ServerSentEvent
from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.admin.form import Form
from mailer.admin.listing import EMPTY_PAGE, PageLinks, list_url, read_list_query
from mailer.admin.live import LiveUpdates, Sections
from mailer.admin.render import PageContext
from mailer.client.phone import STORED_FORM, normalize_phone
from mailer.db.paging import RowPage
from mailer.reply import reading, search
from mailer.reply.api import ReplyQuery
from mailer.reply.reading import MAX_COUNTED_REPLIES
from mailer.web.query import Limit, SearchWords, read_query

PATH = "/replies"
REPLY_FILTER_FIELDS = ("search", "unread", "client_id", "mailing_id", "limit")
"""Fields of the filter form; all but the first two come from links of other pages."""
SECTIONS = ("table", "unread-replies")
"""The sections that are updated live: the names of their templates, and their ids in the HTML."""


class ReplyListQuery(ReplyQuery, frozen=True, kw_only=True):
    """Filters of the list of replies: those of the API, and a search by text and phone."""

    limit: Limit = 50
    search: SearchWords | UnsetType = UNSET


async def find_replies(connection: AsyncConnection, query: ReplyListQuery) -> RowPage:
    """Return the page of the replies that match a query.

    Unread ones come first, unless words are searched: then all are sorted by time. A search for a
    whole phone, in any usual way of writing, finds the replies of that phone.
    """
    filters: dict[str, Any] = query.filters()
    words = filters.pop("search", None)
    if words is None:
        return await reading.page(connection, query.position, filters, inbox=True)
    phone = normalize_phone(words)
    if STORED_FORM.fullmatch(phone):
        return await reading.page(
            connection, query.position, filters | {"phone": phone}, inbox=True
        )
    return await reading.search_page(connection, query.position, words, filters)


async def read_list(engine: AsyncEngine, query: ReplyListQuery, form: Form) -> Mapping[str, Any]:
    """Return the template variables of the live sections."""
    async with engine.connect() as connection:
        page = await find_replies(connection, query)
        unread = await reading.count_unread(connection)
    return _variables(page, form) | {"unread": unread}


def _variables(page: RowPage, form: Form) -> dict[str, Any]:
    """Return the template variables of a page of replies."""
    is_search = bool(form["search"])
    return {
        "replies": page.rows,
        "count": page.count,
        "max_counted": search.MAX_COUNTED_FOUND if is_search else MAX_COUNTED_REPLIES,
        "is_filtered": any(form[name] for name in REPLY_FILTER_FIELDS if name != "limit"),
        "form": form,
        "list_path": list_url(PATH, form),
        "pages": PageLinks(
            newer=list_url(PATH, form, {"after": page.rows[0].position})
            if page.has_newer
            else None,
            older=list_url(PATH, form, {"before": page.rows[-1].position})
            if page.has_older
            else None,
        ),
    }


class ReplyList(Controller):
    """The list of replies."""

    path = "/"

    @get(PATH, required_scope="read")
    async def list_replies(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
    ) -> Response[str]:
        """List the replies that match the filters, unread first."""
        form, query = read_list_query(request, ReplyListQuery, *REPLY_FILTER_FIELDS)
        if query is None:
            return await context.render_page(
                "replies/list.html", 400, **_variables(EMPTY_PAGE, form), live_url=None
            )
        is_first_page = query.before is UNSET and query.after is UNSET
        live_url = list_url("/live/replies", form) if is_first_page else None
        variables: Mapping[str, Any] = await read_list(engine, query, form)
        context = msgspec.structs.replace(context, unread_replies=variables["unread"])
        return await context.render_page("replies/list.html", **variables, live_url=live_url)

    @get("/live/replies", required_scope="read", is_polled=True)
    async def watch_replies(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        live: NamedDependency[LiveUpdates],
    ) -> ServerSentEvent:
        """Stream the first page of the list, and the number of unread replies."""
        query = read_query(request, ReplyListQuery, blank_is_absent=True)
        form, _ = read_list_query(request, ReplyListQuery, *REPLY_FILTER_FIELDS)

        async def sections() -> Sections:
            variables = await read_list(engine, query, form)
            return await context.render_sections("replies", SECTIONS, **variables)

        # a user who may write sees buttons
        key = ("replies", context.viewer, context.may("write"), *sorted(form.values.items()))
        return live.stream(key, sections, context.quota_key)
