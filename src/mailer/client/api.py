"""API routes for the clients of the directory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from litestar import Controller, Request, get, patch, post
from litestar.di import NamedDependency
from litestar.openapi.spec import Operation
from litestar.params import JSONBody, Parameter
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.client import service, store
from mailer.client.exporting import export_clients
from mailer.client.importing import ImportReport, import_clients
from mailer.client.lists.model import ListName, ListToJoin
from mailer.client.model import (
    Client,
    ClientChange,
    NewClient,
    OperatorCode,
    Phone,
    Tag,
    TimeZone,
    unknown_zone_errors,
)
from mailer.client.reading import AS_DETECTED, ImportOptions
from mailer.client.rejected import RejectedLines
from mailer.client.upload import (
    ColumnQuery,
    describe_upload,
    import_or_return_rejected,
    uploaded_file,
)
from mailer.errors import FieldError
from mailer.idempotency.model import IdempotencyClaim
from mailer.validation import MAX_ID
from mailer.web.body import JsonBody, StalledUploadError
from mailer.web.download import csv_answer, wants_csv
from mailer.web.paging import Page, page_of
from mailer.web.query import PageQuery, accepts_query, read_query

MAX_IMPORT_BYTES = 1024**3
"""Bytes of an imported file, 1 GiB: about thirty million clients."""


async def import_upload(
    engine: AsyncEngine,
    request: Request[Any, Any, Any],
    actor: Actor,
    claim: IdempotencyClaim | None = None,
    options: ImportOptions = AS_DETECTED,
) -> ImportReport:
    """Import the file in the body of a request to the API or to the import page.

    Raises `InvalidError` when the file cannot be read, and the errors of `uploaded_file`.
    """
    async with uploaded_file(request, actor) as parts:
        return await import_clients(engine, parts, actor, claim, options)


class ImportQuery(ColumnQuery, frozen=True, kw_only=True):
    """Query parameters of the import."""

    list: ListToJoin | UnsetType = UNSET

    def options(self, rejected: RejectedLines | None = None) -> ImportOptions:
        """Return the options of the import; `rejected` receives all rejected lines."""
        list_name = None if self.list is UNSET else self.list
        return super().options(rejected)._replace(list_name=list_name)


ClientId = Annotated[int, Parameter(ge=1, le=MAX_ID, description="The client's id.")]


class ClientQuery(PageQuery, frozen=True, kw_only=True):
    """Filters and paging of the list of clients. Several filters must all match."""

    operator_code: OperatorCode | UnsetType = UNSET
    tag: Tag | UnsetType = UNSET
    time_zone: TimeZone | UnsetType = UNSET
    phone: Phone | UnsetType = UNSET
    opted_out: (
        Annotated[
            bool,
            Meta(
                description="Whether they have opted out of marketing messages.",
                extra={"rule": "must be true or false"},
            ),
        ]
        | UnsetType
    ) = UNSET
    list: ListName | UnsetType = UNSET

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:
        """Refuse a time zone that no client can have."""
        yield from super().broken_rules(values, at)
        yield from unknown_zone_errors(values)


@dataclass  # as its base class
class ImportOperation(Operation):
    """OpenAPI operation of the import. It describes the body, which the handler reads itself."""

    def __post_init__(self) -> None:
        """Set the query, and the media type, the description and an example of the body."""
        text = (
            "A header, then one client per line. The header must name `phone` and may"
            " name `operator_code`, `tag` and `time_zone`, in any order, in English or Russian"
            " (`телефон`, `код оператора`, `тег` or `метка`, `часовой пояс`). Other columns whose"
            " names are valid for a field, such as `name`, are imported as fields; columns with"
            " other names are ignored, unless `columns` says what they are. Without a header the"
            " phone is found by its content, and the columns after it have the order above. A phone"
            " may be written in any usual way, such as `+7 (916) 123-45-67` or"
            " `8 916 123 45 67`. The delimiter (comma, semicolon or tab)"
            " is detected in the first lines. The encoding is UTF-8, UTF-16 or windows-1251; the"
            " response names it unless it is UTF-8. At most 1 GiB. An apostrophe that keeps a"
            " spreadsheet from running a tag as a formula, as in `'=1+1`, is removed."
        )
        example = "phone,tag,time_zone,name\n79161234567,vip,Europe/Moscow,Anna\n79031234567,,,\n"
        describe_upload(self, ImportQuery, text, example)


class ClientController(Controller):
    """The directory of clients."""

    path = "/clients"
    tags = ("clients",)
    dto = JsonBody
    return_dto = None

    @post(required_scope="write")
    async def create_client(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        data: JSONBody[NewClient],
    ) -> Client:
        """Create a client. 409 when another client has this phone."""
        return await service.create(engine, data, by, claim)

    @post(
        "/import",
        required_scope="write",
        dto=None,
        status_code=HTTPStatus.OK,
        request_max_body_size=MAX_IMPORT_BYTES,
        operation_class=ImportOperation,
        raises=[StalledUploadError],
    )
    async def import_clients(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        request: Request[Any, Any, Any],
    ) -> ImportReport:
        """Import a CSV file or an Excel workbook: create new clients, and update stored ones.

        A line updates the client with its phone. All valid lines are stored in one transaction.
        Invalid lines are rejected and reported, the first 100 with every wrong field. Columns that
        the file lacks stay as they are. An empty cell removes the tag or the field. When a phone is
        in several lines, the last one counts. With `list` the clients of all valid lines, also of
        unchanged ones, are put on a list.

        With `Accept: text/csv` the response is a file of all rejected lines, with the column
        `rejected_reason`: correct it and import it again. The header `Import-Counts` has the
        counts. An `Idempotency-Key` is then refused, because the response would be stored.
        """
        query = read_query(request, ImportQuery)
        return await import_or_return_rejected(  # type: ignore[return-value]  # the OpenAPI schema shows the JSON response
            request,
            by,
            claim,
            lambda rejected: import_upload(engine, request, by, claim, query.options(rejected)),
        )

    @get(required_scope="read", **accepts_query(ClientQuery, or_csv=True))
    async def list_clients(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        query_params: NamedDependency[ClientQuery],
    ) -> Page[Client]:
        """List the clients that match all given filters, newest first.

        With `Accept: text/csv` the response is a file of all of them, oldest first, which can be
        imported again. It has a column for each field that clients have, at most the 90 most used
        ones. In this file a tag or a field that a spreadsheet would run as a formula begins with an
        apostrophe.
        """
        if wants_csv(request):
            return await csv_answer(  # type: ignore[return-value]  # the OpenAPI schema shows the JSON response
                "clients.csv",
                export_clients(engine, by, **query_params.filters()),
                by.quota_key,
            )
        async with engine.connect() as connection:
            page = await store.page(connection, query_params.position, **query_params.filters())
        return page_of(page, request, lambda row: Client(**row._asdict()))

    @get("/{client_id:int}", required_scope="read")
    async def get_client(self, engine: NamedDependency[AsyncEngine], client_id: ClientId) -> Client:
        """Return a client."""
        async with engine.connect() as connection:
            return await store.get(connection, client_id)

    @patch("/{client_id:int}", required_scope="write")
    async def change_client(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        client_id: ClientId,
        data: JSONBody[ClientChange],
    ) -> Client:
        """Change what is given of a client.

        A new phone also sets the operator code to digits 2-4 of that phone, unless one is given.
        `fields` replaces all fields of the client: repeat those to keep; `{}` removes them all.
        """
        return await service.change(engine, client_id, data, by)
