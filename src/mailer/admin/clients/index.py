"""Pages of clients: list, create, change, delete and export."""

import contextlib
from typing import Any

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.response import Redirect
from litestar.status_codes import HTTP_400_BAD_REQUEST, HTTP_409_CONFLICT
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.clients.field_rows import ORIGINAL_FIELDS_OF_ROWS, ROW_FIELDS, shown_rows
from mailer.admin.clients.form import (
    CLIENT_FIELDS,
    ORIGINAL_FIELDS,
    ClientDownloadQuery,
    ClientListQuery,
    form_values,
    read_change,
    read_filter,
    read_new,
)
from mailer.admin.clients.messages import NEWEST_MESSAGES, ClientMessagesQuery, read_messages
from mailer.admin.downloads import default_separator, spreadsheet_layout
from mailer.admin.form import MAX_LONG_FORM_BYTES, Form, read_form
from mailer.admin.listing import PageLinks, page_links
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.client import service, store
from mailer.client.api import ClientId
from mailer.client.exporting import export_clients
from mailer.client.field_names import known_field_names
from mailer.client.lists.membership import lists_of
from mailer.client.model import Client
from mailer.client.phone import normalize_phone
from mailer.client.store import PhoneTakenError
from mailer.erasure import erase_client
from mailer.errors import FieldError, InvalidError
from mailer.idempotency.model import IdempotencyClaim
from mailer.mailing.ending import count_scheduled_of_client
from mailer.opt_out import service as opt_outs
from mailer.opt_out.model import OptOutNotFoundError
from mailer.reply.reading import list_recent
from mailer.web.download import csv_answer
from mailer.web.query import read_query, read_unvalidated_query

PATH = "/clients"
CLIENT_FILTER_FIELDS = (*CLIENT_FIELDS, "list", "opted_out")
CHANGE_FORM_FIELDS = (
    *CLIENT_FIELDS,
    *ORIGINAL_FIELDS.values(),
    *ROW_FIELDS,
    ORIGINAL_FIELDS_OF_ROWS,
)
MAX_CLIENT_REPLIES = 10
"""Replies that the page of a client shows: the newest."""


class ClientPage(msgspec.Struct, frozen=True):
    """One page of the clients that match a filter, with its links."""

    count: int
    """Number of clients on all pages of the list."""
    clients: list[Client]
    pages: PageLinks
    filters: dict[str, Any]
    """The filters, as parameters of the URLs of downloads."""


def redirect_to_created(client_id: int) -> Redirect:
    """Return the redirect to a client that the form has created."""
    return redirect_with_flash("client-created", f"{PATH}/{client_id}")


class Clients(Controller):
    """The list of clients, and the forms of one client."""

    @get(PATH, required_scope="read")
    async def list_clients(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[str]:
        """List the clients that match the filter in the URL, newest first."""
        form = _filter_form(request)
        parameters = read_unvalidated_query(request, blank_is_absent=True)
        try:
            query = read_filter(parameters, ClientListQuery)
            page = await _find_clients(engine, query)
        except InvalidError as error:  # also if there is no such list
            return await _render_wrong_filter(context, form, error)
        separator = default_separator(context.viewer.language)
        return await context.render_page(
            "clients/list.html", form=form, page=page, separator=separator
        )

    @get("/clients.csv", required_scope="read")
    async def export(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Download all clients that match the filter, oldest first, as CSV that can be imported."""
        parameters = read_unvalidated_query(request, blank_is_absent=True)
        try:
            query = read_filter(parameters, ClientDownloadQuery)
        except InvalidError as error:
            return await _render_wrong_filter(context, _filter_form(request), error)
        layout = spreadsheet_layout(query.separator, context.viewer.language)
        rows = export_clients(engine, by, layout=layout, **query.filters())
        return await csv_answer("clients.csv", rows, by.quota_key)

    @get("/clients/new", required_scope="write")
    async def show_empty(
        self, engine: NamedDependency[AsyncEngine], context: NamedDependency[PageContext]
    ) -> Response[str]:
        """Show the form of a new client."""
        form = Form({"time_zone": "UTC"})
        return await context.render_page(
            "clients/new.html", **await _form_variables(engine, form), taken_phone=None
        )

    @post(
        "/clients/new",
        required_scope="write",
        creates=redirect_to_created,
        request_max_body_size=MAX_LONG_FORM_BYTES,
    )
    async def create_client(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Create a client, or show the form again with its errors."""
        form = Form(await read_form(request, *CLIENT_FIELDS, *ROW_FIELDS))
        try:
            new = read_new(form.values)
            created = await service.create(engine, new, by, claim)
        except (InvalidError, PhoneTakenError) as error:
            status, variables = _refused_form(form, error)
            variables |= await _form_variables(engine, variables["form"])
            return await context.render_page("clients/new.html", status, **variables)
        return redirect_to_created(created.id)

    @get("/clients/{client_id:int}", required_scope="read")
    async def show_client(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        client_id: ClientId,
    ) -> Response[str]:
        """Show a client in a form that changes the client, and the client's messages."""
        query = read_query(request, ClientMessagesQuery, blank_is_absent=True)
        variables = await _read_client(engine, client_id, query)
        form = Form(form_values(variables["client"]))
        variables |= await _form_variables(engine, form)
        return await context.render_page("clients/client.html", **variables, taken_phone=None)

    @post(
        "/clients/{client_id:int}",
        required_scope="write",
        request_max_body_size=MAX_LONG_FORM_BYTES,
    )
    async def change_client(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        client_id: ClientId,
    ) -> Response[Any]:
        """Save the fields changed in the form, or show the form again with its errors."""
        form = Form(await read_form(request, *CHANGE_FORM_FIELDS))
        try:
            change, edits = read_change(form.values)
            if not change.values() and not edits.values:
                return redirect_with_flash("client-unchanged", f"{PATH}/{client_id}")
            await service.change(engine, client_id, change, by, edits)
        except (InvalidError, PhoneTakenError) as error:
            status, variables = _refused_form(form, error)
            variables |= await _form_variables(engine, variables["form"])
            variables |= await _read_client(engine, client_id)
            return await context.render_page("clients/client.html", status, **variables)
        return redirect_with_flash("client-changed", f"{PATH}/{client_id}")

    @get("/clients/{client_id:int}/opt-out", required_scope="write")
    async def ask_to_opt_out(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        client_id: ClientId,
    ) -> Response[str]:
        """Ask for confirmation before a client is opted out."""
        client = await _get_client(engine, client_id)
        return await context.render_page("clients/opt_out.html", client=client)

    @post("/clients/{client_id:int}/opt-out", required_scope="write")
    async def opt_out(
        self, engine: NamedDependency[AsyncEngine], client_id: ClientId, by: NamedDependency[Actor]
    ) -> Response[Any]:
        """Opt a client out."""
        client = await _get_client(engine, client_id)
        await opt_outs.opt_out(engine, client.phone, "page", by)
        return redirect_with_flash("client-opted-out", f"{PATH}/{client_id}")

    @get("/clients/{client_id:int}/opt-in", required_scope="write")
    async def ask_to_opt_in(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        client_id: ClientId,
    ) -> Response[str]:
        """Ask for confirmation before a client is opted in again."""
        client = await _get_client(engine, client_id)
        return await context.render_page("clients/opt_in.html", client=client)

    @post("/clients/{client_id:int}/opt-in", required_scope="write")
    async def opt_in(
        self, engine: NamedDependency[AsyncEngine], client_id: ClientId, by: NamedDependency[Actor]
    ) -> Response[Any]:
        """Opt a client in again. A client who has not opted out stays so."""
        client = await _get_client(engine, client_id)
        with contextlib.suppress(OptOutNotFoundError):
            await opt_outs.opt_in(engine, client.phone, by)
        return redirect_with_flash("client-opted-in", f"{PATH}/{client_id}")

    @get("/clients/{client_id:int}/delete", required_scope="write")
    async def ask_to_delete(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        client_id: ClientId,
    ) -> Response[str]:
        """Ask for confirmation before a client is deleted, and describe the effects."""
        async with engine.connect() as connection:
            client = await store.get(connection, client_id)
            unsent = await count_scheduled_of_client(connection, client_id)
        return await context.render_page("clients/delete.html", client=client, unsent=unsent)

    @post("/clients/{client_id:int}/delete", required_scope="write")
    async def delete_client(
        self, engine: NamedDependency[AsyncEngine], client_id: ClientId, by: NamedDependency[Actor]
    ) -> Response[Any]:
        """Erase the personal data of a client permanently, and cancel messages not sent yet."""
        await erase_client(engine, client_id, by)
        return redirect_with_flash("client-deleted", PATH)


async def _get_client(engine: AsyncEngine, client_id: int) -> Client:
    async with engine.connect() as connection:
        return await store.get(connection, client_id)


async def _read_client(
    engine: AsyncEngine, client_id: int, query: ClientMessagesQuery = NEWEST_MESSAGES
) -> dict[str, Any]:
    """Return the template variables of a client, with a page of messages and the newest replies."""
    async with engine.connect() as connection:
        return {
            "client": await store.get(connection, client_id),
            "client_lists": await lists_of(connection, client_id),
            **await read_messages(connection, client_id, query),
            "recent_replies": await list_recent(
                connection, MAX_CLIENT_REPLIES, client_id=client_id
            ),
            "replies_url": f"/replies?client_id={client_id}",
        }


async def _form_variables(engine: AsyncEngine, form: Form) -> dict[str, Any]:
    """Return the template variables of the form of a client: also its rows of fields."""
    async with engine.connect() as connection:
        known_names = await known_field_names(connection)
    return {"form": form, "field_rows": shown_rows(form.values), "known_names": known_names}


async def _find_clients(engine: AsyncEngine, query: ClientListQuery) -> ClientPage:
    """Return the page of the clients that match a query. Its links keep a limit that was given."""
    filters = query.filters()
    async with engine.connect() as connection:
        page = await store.page(connection, query.position, **filters)
    has_default_limit = query.limit == ClientListQuery().limit
    link_filters = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in filters.items()
    }
    link_parameters = (
        link_filters if has_default_limit else link_filters | {"limit": str(query.limit)}
    )
    return ClientPage(
        page.count,
        [Client(**row._asdict()) for row in page.rows],
        page_links(page, PATH, Form(link_parameters)),
        filters=link_filters,
    )


def _filter_form(request: Request[Any, Any, Any]) -> Form:
    """Return the filter as a form, as the user entered it."""
    query = read_unvalidated_query(request, blank_is_absent=True)
    values = {field: query.get(field, "") for field in CLIENT_FILTER_FIELDS}
    return Form({field: text if isinstance(text, str) else "" for field, text in values.items()})


async def _render_wrong_filter(
    context: PageContext, form: Form, error: InvalidError
) -> Response[str]:
    """Return the list page without clients, and with the errors beside the fields of the filter."""
    form = form.with_errors(error)
    return await context.render_page(
        "clients/list.html", HTTP_400_BAD_REQUEST, form=form, page=None
    )


def _refused_form(form: Form, error: InvalidError | PhoneTakenError) -> tuple[int, dict[str, Any]]:
    """Return the response status and the template variables of a form that cannot be saved.

    `taken_phone` is the phone if another client has it, for a link to that client.
    """
    match error:
        case InvalidError():
            return HTTP_400_BAD_REQUEST, {"form": form.with_errors(error), "taken_phone": None}
        case PhoneTakenError():
            form = form.with_errors(InvalidError([FieldError("phone", str(error))]))
            taken_phone = normalize_phone(form["phone"])
            return HTTP_409_CONFLICT, {"form": form, "taken_phone": taken_phone}
