"""Routes of the directory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from litestar import Controller, Request, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import JSONBody, Parameter
from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.client import service, store
from mailer.client.exporting import export_clients
from mailer.client.importing import ImportReport
from mailer.client.model import (
    Client,
    ClientChange,
    NewClient,
    OperatorCode,
    Phone,
    Tag,
    TimeZone,
    unknown_zone,
)
from mailer.client.upload import IMPORT_LIMIT, import_upload
from mailer.errors import FieldError
from mailer.validation import MAX_ID
from mailer.web.body import JsonBody, StalledUploadError
from mailer.web.download import csv_answer, wants_csv
from mailer.web.paging import Page, page_of
from mailer.web.query import PageQuery, takes

ClientId = Annotated[int, Parameter(ge=1, le=MAX_ID, description="The client's id.")]


class ClientQuery(PageQuery, frozen=True, kw_only=True):
    """Which clients."""

    operator_code: OperatorCode | UnsetType = UNSET
    tag: Tag | UnsetType = UNSET
    time_zone: TimeZone | UnsetType = UNSET
    phone: Phone | UnsetType = UNSET

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:
        """Refuse a time zone that no client can have."""
        yield from super().broken_rules(values, at)
        yield from unknown_zone(values)


@dataclass  # as its base is
class ImportOperation(Operation):
    """Describes the body of an import, which the handler reads itself."""

    def __post_init__(self) -> None:
        """Name the type of the body, with an example."""
        text = Schema(
            type=OpenAPIType.STRING,
            description="A header that names `phone` and, in any order, what else is given of"
            " `operator_code`, `tag` and `time_zone`; then a client a line. A phone may be written"
            " in every usual way, such as `+7 (916) 123-45-67` or `8 916 123 45 67`. What separates"
            " the header, commas, semicolons or tabs, separates the lines. UTF-8, UTF-16, or else"
            " windows-1251, which the answer then says; at most 1 GiB. An apostrophe that keeps a"
            " spreadsheet from running a tag as a formula, such as `'=1+1`, is taken away.",
        )
        example = "phone,tag,time_zone\n79161234567,vip,Europe/Moscow\n79031234567,,\n"
        media = OpenAPIMediaType(schema=text, example=example)
        self.request_body = RequestBody(content={"text/csv": media}, required=True)


class ClientController(Controller):
    """The directory of clients."""

    path = "/clients"
    tags = ("clients",)
    dto = JsonBody
    return_dto = None

    @post(needs="write")
    async def add_client(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        data: JSONBody[NewClient],
    ) -> Client:
        """Add a client. 409 when the phone is taken."""
        return await service.add(engine, data, by)

    @post(
        "/import",
        needs="write",
        dto=None,
        status_code=HTTPStatus.OK,
        request_max_body_size=IMPORT_LIMIT,
        operation_class=ImportOperation,
        raises=[StalledUploadError],
    )
    async def import_clients(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
    ) -> ImportReport:
        """Add the clients of a CSV file and update those whose phones are known.

        Good lines go in, all at once; bad ones are reported, the first 100 in full. Columns that
        the file lacks are left as they are. A phone that comes again counts by its last line.
        """
        return await import_upload(engine, request, by)

    @get(needs="read", **takes(ClientQuery, or_csv=True))
    async def list_clients(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        asked: NamedDependency[ClientQuery],
    ) -> Page[Client]:
        """List clients, newest first, those that equal what is given.

        With `Accept: text/csv` all of them, oldest first, as a file that an import takes back; a
        tag that a spreadsheet would run as a formula has an apostrophe before it there.
        """
        if wants_csv(request):
            return await csv_answer(  # type: ignore[return-value]  # the schema shows the usual form
                "clients.csv", export_clients(engine, by, **asked.equal()), by.caller
            )
        async with engine.connect() as connection:
            found = await store.page(connection, asked.position, **asked.equal())
        return page_of(found, request, lambda row: Client(**row._asdict()))

    @get("/{client_id:int}", needs="read")
    async def get_client(self, engine: NamedDependency[AsyncEngine], client_id: ClientId) -> Client:
        """Return a client."""
        async with engine.connect() as connection:
            return await store.get(connection, client_id)

    @patch("/{client_id:int}", needs="write")
    async def change_client(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        client_id: ClientId,
        data: JSONBody[ClientChange],
    ) -> Client:
        """Change a client: the fields given; a new phone brings its own operator code."""
        return await service.change(engine, client_id, data, by)

    @delete("/{client_id:int}", needs="write")
    async def delete_client(
        self, engine: NamedDependency[AsyncEngine], by: NamedDependency[Actor], client_id: ClientId
    ) -> None:
        """Erase a client's personal data for good and cancel what was to be sent."""
        await service.erase(engine, client_id, by)
