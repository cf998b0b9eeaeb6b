"""Pages of one list of clients: its clients, putting one on it and taking one off, deletion."""

from typing import Any

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.status_codes import HTTP_200_OK, HTTP_400_BAD_REQUEST
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access.model import Actor
from mailer.admin.clients.list_index import PATH
from mailer.admin.downloads import default_separator
from mailer.admin.form import Form, read_form
from mailer.admin.language import gettext_noop
from mailer.admin.listing import PageLinks, page_links
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.client import store as clients
from mailer.client.lists import service, store
from mailer.client.lists.api import ListId
from mailer.client.lists.membership import UNKNOWN_PHONE
from mailer.client.lists.model import ClientList, ListMembers
from mailer.client.model import Client
from mailer.client.phone import normalize_phone
from mailer.clock import database_clock
from mailer.db.paging import Cursor
from mailer.errors import FieldError, InvalidError
from mailer.validation import MAX_ID, check
from mailer.web.query import PageQuery, read_query

NO_SUCH_PHONE = gettext_noop("is the phone of no client: create the client, or import a file")
FIRST_PAGE = PageQuery()


class MembersPage(msgspec.Struct, frozen=True):
    """One page of the clients on a list, with its links."""

    clients: list[Client]
    count: int
    pages: PageLinks


class ListPage(Controller):
    """One list of clients."""

    path = f"{PATH}/{{list_id:int}}"

    @get(required_scope="read")
    async def show_list(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
        list_id: ListId,
    ) -> Response[str]:
        """Show a list with a page of its clients, those with the highest ids first."""
        query = read_query(request, PageQuery, blank_is_absent=True)
        return await _render(engine, context, list_id, query.position)

    @post("/add", required_scope="write")
    async def add_client(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        list_id: ListId,
    ) -> Response[Any]:
        """Put the client with a phone on the list, or show the page again with an error."""
        form = Form(await read_form(request, "phone"))
        try:
            result = await service.add_members(engine, list_id, _read_member(form), by)
        except InvalidError as error:
            form = form.with_errors(_of_phone(error))
            return await _render(
                engine, context, list_id, FIRST_PAGE.position, form, HTTP_400_BAD_REQUEST
            )
        flash = "list-client-added" if result.added else "list-client-unchanged"
        return redirect_with_flash(flash, f"{PATH}/{list_id}")

    @post("/remove", required_scope="write")
    async def remove_client(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        list_id: ListId,
    ) -> Response[Any]:
        """Take a client off the list."""
        given = (await read_form(request, "client_id"))["client_id"]
        client_id = int(given) if given.isascii() and given.isdecimal() else 0
        if 0 < client_id <= MAX_ID:
            await service.remove_members(engine, list_id, ListMembers(ids=[client_id]), by)
        return redirect_with_flash("list-client-removed", f"{PATH}/{list_id}")

    @get("/delete", required_scope="write")
    async def ask_to_delete(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        list_id: ListId,
    ) -> Response[str]:
        """Ask for confirmation before a list is deleted, or name the mailings that need it."""
        async with engine.connect() as connection:
            shown = await store.get(connection, list_id)
            mailing_ids = await store.find_unended_mailings(connection, shown.name)
        return await context.render_page(
            "client_lists/delete.html", client_list=shown, mailing_ids=mailing_ids
        )

    @post("/delete", required_scope="write")
    async def delete_list(
        self, engine: NamedDependency[AsyncEngine], by: NamedDependency[Actor], list_id: ListId
    ) -> Response[Any]:
        """Delete a list; its clients stay in the directory."""
        await service.delete(engine, list_id, by)
        return redirect_with_flash("list-deleted", PATH)


def _read_member(form: Form) -> ListMembers:
    """Return the client to put on a list; raises `InvalidError`."""
    return check(ListMembers, {"phones": [normalize_phone(form["phone"])]}, database_clock.now())


def _of_phone(error: InvalidError) -> InvalidError:
    """Return the errors of the members of a list as those of the only phone in the form."""
    [wrong] = error.errors
    is_unknown = wrong.message == UNKNOWN_PHONE
    message = NO_SUCH_PHONE if is_unknown else "must be 7 and ten more digits, such as 79161234567"
    return InvalidError([FieldError("phone", message)])


async def _render(  # noqa: PLR0913, PLR0917  # what the page shows
    engine: AsyncEngine,
    context: PageContext,
    list_id: int,
    position: Cursor,
    form: Form | None = None,
    status: int = HTTP_200_OK,
) -> Response[str]:
    """Return the page of a list with a page of its clients, and the form for a phone."""
    async with engine.connect() as connection:
        shown = await store.get(connection, list_id)
        page = await _read_members(connection, shown, position)
    return await context.render_page(
        "client_lists/page.html",
        status,
        client_list=shown,
        page=page,
        form=form or Form({"phone": ""}),
        separator=default_separator(context.viewer.language),
    )


async def _read_members(
    connection: AsyncConnection, client_list: ClientList, position: Cursor
) -> MembersPage:
    page = await clients.page(connection, position, list=client_list.name)
    return MembersPage(
        [Client(**row._asdict()) for row in page.rows],
        page.count,
        page_links(page, f"{PATH}/{client_list.id}", Form({})),
    )
