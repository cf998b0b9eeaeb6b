"""API routes for the clients of the directory."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, get_args

from litestar import Controller, Request, get, patch, post
from litestar.di import NamedDependency
from litestar.exceptions import HTTPException
from litestar.openapi.spec import (
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    RequestBody,
    Schema,
)
from litestar.params import JSONBody, Parameter
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.client import service, store
from mailer.client.decoding import Encoding
from mailer.client.exporting import export_clients
from mailer.client.importing import ImportReport, import_clients
from mailer.client.layout import MAX_COLUMNS
from mailer.client.lists.model import ListChoice, ListName
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
from mailer.client.workbook import require_workbook
from mailer.errors import FieldError, InvalidError
from mailer.idempotency.model import IdempotencyClaim
from mailer.limits import ConcurrencyLimiter
from mailer.validation import MAX_ID
from mailer.web.body import JsonBody, StalledUploadError, read_with_stall_timeout
from mailer.web.download import Download, csv_answer, wants_csv
from mailer.web.paging import Page, page_of
from mailer.web.query import PageQuery, accepts_query, query_parameters, read_query
from mailer.web.workbook import XLSX_TYPE

MAX_IMPORT_BYTES = 1024**3
"""Bytes of an imported file, 1 GiB: about thirty million clients."""
COUNTS_HEADER = "Import-Counts"
"""The header with the counts of an import whose response is the file of rejected lines."""
MAX_CONCURRENT_IMPORTS = 2
"""Imports at once. Each occupies a connection of the pool that all requests share."""
CHARSETS = frozenset({"utf8", "cp1251", *(name.lower() for name in get_args(Encoding))})
"""Charsets accepted in Content-Type. The encoding itself is detected from the file."""
IMPORT_LIMITER = ConcurrencyLimiter(MAX_CONCURRENT_IMPORTS, per_owner=1, timeout=5.0)
"""Allows each API key or user one import at once. Another one waits up to 5 seconds for a slot."""


@asynccontextmanager
async def uploaded_file(
    request: Request[Any, Any, Any], actor: Actor
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Yield the parts of the CSV file or Excel workbook in the body of a request.

    Raises `StalledUploadError` and `LongUploadError` when the upload takes too long; `BusyError`
    when no slot becomes free; HTTPException 415 when the Content-Type is another one or names a
    charset not in `CHARSETS`. The parts raise `InvalidError` when the file is no workbook, although
    the Content-Type says so.
    """
    media_type, options = request.content_type
    is_csv = media_type == "text/csv" and options.get("charset", "utf-8").lower() in CHARSETS
    if not is_csv and media_type != XLSX_TYPE:
        raise HTTPException(
            "Send CSV (UTF-8, UTF-16 or windows-1251) as Content-Type: text/csv,"
            " or an Excel workbook (.xlsx) as"
            " application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.",
            status_code=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )
    async with (
        IMPORT_LIMITER.slot(actor.quota_key),
        aclosing(read_with_stall_timeout(request.stream())) as parts,
    ):
        if is_csv:
            yield parts
            return
        async with aclosing(require_workbook(parts)) as workbook_parts:
            yield workbook_parts


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


class ImportQuery(ListChoice, frozen=True, kw_only=True):
    """Query parameters of the import."""

    columns: (
        Annotated[
            list[str],
            Meta(
                max_length=MAX_COLUMNS,
                description="What each column of the file is, in the file's order, instead of what"
                " its header says: `phone`, `operator_code`, `tag`, `time_zone`, the name of a"
                " field, or nothing for a column to ignore. For example `phone,,name`. A field that"
                " is called like a column is written as `fields.tag`.",
                extra={"rule": f"must have one entry for each of up to {MAX_COLUMNS} columns"},
            ),
        ]
        | UnsetType
    ) = UNSET

    def options(self, rejected: RejectedLines | None = None) -> ImportOptions:
        """Return the options of the import; `rejected` receives all rejected lines.

        A blank parameter is the same as none.
        """
        columns = None if self.columns is UNSET or self.columns == [""] else self.columns
        return ImportOptions(columns, rejected, list_name=self.list_name)


async def _import_and_return_rejected(
    engine: AsyncEngine, request: Request[Any, Any, Any], actor: Actor, query: ImportQuery
) -> Download:
    """Import the file in the body of a request; return a response with the rejected lines."""
    with RejectedLines() as rejected:
        options = query.options(rejected)
        report = await import_upload(engine, request, actor, options=options)
        answer = await rejected_answer(rejected, actor)
    counts = ("created", "updated", "unchanged", "rejected")
    answer.headers[COUNTS_HEADER] = ", ".join(f"{name}={getattr(report, name)}" for name in counts)
    return answer


async def rejected_answer(rejected: RejectedLines, actor: Actor) -> Download:
    """Return a response that downloads the rejected lines."""
    return await csv_answer("rejected.csv", rejected.parts(), actor.quota_key)


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


def workbook_media() -> OpenAPIMediaType:
    """Return the OpenAPI description of an Excel workbook as a body."""
    description = "The first sheet has the same columns, with or without a header. At most 64 MiB."
    return OpenAPIMediaType(
        schema=Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY, description=description)
    )


@dataclass  # as its base class
class ImportOperation(Operation):
    """OpenAPI operation of the import. It describes the body, which the handler reads itself."""

    def __post_init__(self) -> None:
        """Set the query, and the media type, the description and an example of the body."""
        self.parameters = [*(self.parameters or ()), *query_parameters(ImportQuery)]
        text = Schema(
            type=OpenAPIType.STRING,
            description="A header, then one client per line. The header must name `phone` and may"
            " name `operator_code`, `tag` and `time_zone`, in any order, in English or Russian"
            " (`телефон`, `код оператора`, `тег` or `метка`, `часовой пояс`). Other columns whose"
            " names are valid for a field, such as `name`, are imported as fields; columns with"
            " other names are ignored, unless `columns` says what they are. Without a header the"
            " phone is found by its content, and the columns after it have the order above. A phone"
            " may be written in any usual way, such as `+7 (916) 123-45-67` or"
            " `8 916 123 45 67`. The delimiter (comma, semicolon or tab)"
            " is detected in the first lines. The encoding is UTF-8, UTF-16 or windows-1251; the"
            " response names it unless it is UTF-8. At most 1 GiB. An apostrophe that keeps a"
            " spreadsheet from running a tag as a formula, as in `'=1+1`, is removed.",
        )
        example = "phone,tag,time_zone,name\n79161234567,vip,Europe/Moscow,Anna\n79031234567,,,\n"
        media = OpenAPIMediaType(schema=text, example=example)
        content = {"text/csv": media, XLSX_TYPE: workbook_media()}
        self.request_body = RequestBody(content=content, required=True)
        self.parameters = [*(self.parameters or ()), *query_parameters(ListChoice)]


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
        if not wants_csv(request):
            return await import_upload(engine, request, by, claim, query.options())
        if claim is not None:
            message = "cannot be given together with Accept: text/csv"
            raise InvalidError([FieldError("Idempotency-Key", message)])
        return await _import_and_return_rejected(engine, request, by, query)  # type: ignore[return-value]  # the OpenAPI schema shows the JSON response

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
