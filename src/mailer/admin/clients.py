"""The directory: finding clients, adding, changing and erasing them."""

from typing import Any

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.status_codes import HTTP_400_BAD_REQUEST, HTTP_409_CONFLICT
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.client_form import FIELDS, WAS, as_change, as_filter, as_new, as_shown
from mailer.admin.form import Form, typed
from mailer.admin.listing import Pages, address, pages
from mailer.admin.render import Show, done
from mailer.client import service, store
from mailer.client.api import ClientId, ClientQuery
from mailer.client.exporting import export_clients
from mailer.client.model import Client
from mailer.client.phone import normalize_phone
from mailer.client.store import PhoneTakenError
from mailer.errors import FieldError, InvalidError
from mailer.web.download import csv_answer
from mailer.web.query import parameters

PATH = "/clients"


class Found(msgspec.Struct, frozen=True):
    """A page of the clients that a filter matches, and where to go from it."""

    count: int
    clients: list[Client]
    pages: Pages
    export: str
    is_filtered: bool


class Clients(Controller):
    """The directory of clients."""

    @get(PATH, needs="read")
    async def list_clients(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        request: Request[Any, Any, Any],
    ) -> Response[str]:
        """List those that the filter in the address matches, newest first."""
        form = _filter(request)
        try:
            asked = as_filter(parameters(request, blank_is_absent=True))
        except InvalidError as error:
            return _wrong_filter(show, form, error)
        return show.page("clients/list.html", form=form, found=await _find(engine, asked))

    @get("/clients.csv", needs="read")
    async def export(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        show: NamedDependency[Show],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Give all that the filter matches, oldest first, as a file that an import takes back."""
        try:
            asked = as_filter(parameters(request, blank_is_absent=True))
        except InvalidError as error:
            return _wrong_filter(show, _filter(request), error)
        return await csv_answer(
            "clients.csv", export_clients(engine, by, **asked.equal()), by.caller
        )

    @get("/clients/new", needs="write")
    async def show_empty(self, show: NamedDependency[Show]) -> Response[str]:
        """Show the form of a new client."""
        return show.page("clients/new.html", form=Form({"time_zone": "UTC"}), taken=None)

    @post("/clients/new", needs="write", creates=True)
    async def add_client(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Add a client, or show the form again with what is wrong."""
        form = Form(await typed(request, *FIELDS))
        try:
            new = as_new(form.values)
            added = await service.add(engine, new, by)
        except (InvalidError, PhoneTakenError) as error:
            status, facts = _refused(form, error)
            return show.page("clients/new.html", status, **facts)
        return done("client-created", f"{PATH}/{added.id}")

    @get("/clients/{client_id:int}", needs="read")
    async def show_client(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        client_id: ClientId,
    ) -> Response[str]:
        """Show a client, in a form that changes it."""
        client = await _get(engine, client_id)
        form = Form(as_shown(client))
        return show.page("clients/client.html", client=client, form=form, taken=None)

    @post("/clients/{client_id:int}", needs="write")
    async def change_client(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        client_id: ClientId,
    ) -> Response[Any]:
        """Change what was changed in the form, or show it again with what is wrong."""
        form = Form(await typed(request, *FIELDS, *WAS.values()))
        try:
            change = as_change(form.values)
            if not change.values():
                return done("client-unchanged", f"{PATH}/{client_id}")
            await service.change(engine, client_id, change, by)
        except (InvalidError, PhoneTakenError) as error:
            status, facts = _refused(form, error)
            client = await _get(engine, client_id)
            return show.page("clients/client.html", status, client=client, **facts)
        return done("client-changed", f"{PATH}/{client_id}")

    @get("/clients/{client_id:int}/delete", needs="write")
    async def ask_to_delete(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        client_id: ClientId,
    ) -> Response[str]:
        """Ask whether to delete a client, and tell what that does."""
        async with engine.connect() as connection:
            client = await store.get(connection, client_id)
            waiting = await store.still_to_send(connection, client_id)
        return show.page("clients/delete.html", client=client, waiting=waiting)

    @post("/clients/{client_id:int}/delete", needs="write")
    async def delete_client(
        self, engine: NamedDependency[AsyncEngine], client_id: ClientId, by: NamedDependency[Actor]
    ) -> Response[Any]:
        """Erase a client's personal data for good and cancel what was to be sent."""
        await service.erase(engine, client_id, by)
        return done("client-deleted", PATH)


async def _get(engine: AsyncEngine, client_id: int) -> Client:
    async with engine.connect() as connection:
        return await store.get(connection, client_id)


async def _find(engine: AsyncEngine, asked: ClientQuery) -> Found:
    async with engine.connect() as connection:
        found = await store.page(connection, asked.position, **asked.equal())
    kept = asked.equal()
    shown = kept if asked.limit == ClientQuery().limit else kept | {"limit": str(asked.limit)}
    return Found(
        found.count,
        [Client(**row._asdict()) for row in found.rows],
        pages(found, PATH, Form(shown)),
        export=address("/clients.csv", Form(kept)),
        is_filtered=bool(kept),
    )


def _filter(request: Request[Any, Any, Any]) -> Form:
    """Return the filter as it was typed."""
    given = parameters(request, blank_is_absent=True)
    values = {field: given.get(field, "") for field in FIELDS}
    return Form({field: each if isinstance(each, str) else "" for field, each in values.items()})


def _wrong_filter(show: Show, form: Form, error: InvalidError) -> Response[str]:
    refused = form.refused(error)
    return show.page("clients/list.html", HTTP_400_BAD_REQUEST, form=refused, found=None)


def _refused(form: Form, error: InvalidError | PhoneTakenError) -> tuple[int, dict[str, Any]]:
    """Return the status and what a form shows when what it holds cannot be stored."""
    match error:
        case InvalidError():
            return HTTP_400_BAD_REQUEST, {"form": form.refused(error), "taken": None}
        case PhoneTakenError():
            told = InvalidError([FieldError("phone", str(error))])
            facts = {"form": form.refused(told), "taken": normalize_phone(form["phone"])}
            return HTTP_409_CONFLICT, facts
