"""Pages of the lists of clients: all lists, and a new one."""

from typing import Any

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.response import Redirect
from litestar.status_codes import HTTP_400_BAD_REQUEST, HTTP_409_CONFLICT
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.form import Form, read_form
from mailer.admin.listing import PageLinks, page_links, read_list_query
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.client.lists import service, store
from mailer.client.lists.api import ListQuery
from mailer.client.lists.model import ClientList, ListNameTakenError, NewList
from mailer.clock import database_clock
from mailer.errors import FieldError, InvalidError
from mailer.idempotency.model import IdempotencyClaim
from mailer.validation import check

PATH = "/clients/lists"


class ListsPage(msgspec.Struct, frozen=True):
    """One page of the lists of clients, with its links."""

    count: int
    """Number of lists on all pages."""
    lists: list[ClientList]
    pages: PageLinks


def redirect_to_created(list_id: int) -> Redirect:
    """Return the redirect to a list that the form has created."""
    return redirect_with_flash("list-created", f"{PATH}/{list_id}")


class ListIndex(Controller):
    """All lists of clients, and the form of a new one."""

    path = PATH

    @get(required_scope="read")
    async def show_lists(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[str]:
        """Show the lists, newest first: all, or those that the search in the URL finds."""
        form, query = read_list_query(request, ListQuery, "search")
        if query is None:
            return await context.render_page(
                "client_lists/list.html", HTTP_400_BAD_REQUEST, form=form, page=None
            )
        async with engine.connect() as connection:
            rows = await store.page(connection, query.position, **query.filters())
        page = ListsPage(
            rows.count,
            [ClientList(**row._asdict()) for row in rows.rows],
            page_links(rows, PATH, form),
        )
        return await context.render_page("client_lists/list.html", form=form, page=page)

    @get("/new", required_scope="write")
    async def show_empty(self, context: NamedDependency[PageContext]) -> Response[str]:
        """Show the form of a new list."""
        return await context.render_page("client_lists/new.html", form=Form({"name": ""}))

    @post("/new", required_scope="write", creates=redirect_to_created)
    async def create_list(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Create a list, or show the form again with its errors."""
        form = Form(await read_form(request, "name"))
        try:
            new = check(NewList, form.values, database_clock.now())
            created = await service.create(engine, new, by, claim)
        except InvalidError as error:
            form, status = form.with_errors(error), HTTP_400_BAD_REQUEST
        except ListNameTakenError as error:
            taken = InvalidError([FieldError("name", str(error))])
            form, status = form.with_errors(taken), HTTP_409_CONFLICT
        else:
            return redirect_to_created(created.id)
        return await context.render_page("client_lists/new.html", status, form=form)
