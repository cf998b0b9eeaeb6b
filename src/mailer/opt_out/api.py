"""API routes of opt-outs.

The phone to opt in is in the body of `POST /opt-outs/delete`, and not in the address of a DELETE:
proxies log addresses.
"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from litestar import Controller, Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Operation
from litestar.params import JSONBody, Parameter
from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.client.model import Phone
from mailer.client.reading import AS_DETECTED, ImportOptions
from mailer.client.upload import (
    ColumnQuery,
    describe_upload,
    import_or_return_rejected,
    uploaded_file,
)
from mailer.idempotency.model import IdempotencyClaim
from mailer.opt_out import service, store
from mailer.opt_out.exporting import export_opt_outs
from mailer.opt_out.importing import OptOutImportReport, import_opt_outs
from mailer.opt_out.model import OptOut, OptOutPhone
from mailer.validation import MAX_ID
from mailer.web.body import JsonBody, StalledUploadError
from mailer.web.download import csv_answer, wants_csv
from mailer.web.paging import Page, page_of
from mailer.web.query import Id, PageQuery, accepts_query, read_query

MAX_OPT_OUT_IMPORT_BYTES = 50 * 1024**2
"""Bytes of an imported file, 50 MiB: about four million phones."""

OptOutId = Annotated[int, Parameter(ge=1, le=MAX_ID, description="The opt-out's id.")]


class OptOutQuery(PageQuery, frozen=True, kw_only=True):
    """Filters and paging of the list of opt-outs."""

    client_id: Id | UnsetType = UNSET
    phone: Phone | UnsetType = UNSET


@dataclass  # as its base class
class OptOutImportOperation(Operation):
    """OpenAPI operation of the import. It describes the body, which the handler reads itself."""

    def __post_init__(self) -> None:
        """Set the query, and the media type, the description and an example of the body."""
        text = (
            "A header, then one phone per line. The header must name `phone` and may"
            " name `opted_out_at`, a date and time; default: now. A time without an offset is one"
            " of the column `time_zone`, or else of UTC. Phones, delimiters and encodings are as in"
            " the import of clients. At most 50 MiB."
        )
        example = "phone,opted_out_at\n79161234567,2025-01-15T09:30:00Z\n79031234567,\n"
        describe_upload(self, ColumnQuery, text, example)


async def import_opt_out_upload(
    engine: AsyncEngine,
    request: Request[Any, Any, Any],
    actor: Actor,
    claim: IdempotencyClaim | None = None,
    options: ImportOptions = AS_DETECTED,
) -> OptOutImportReport:
    """Import the file in the body of a request to the API or to the import page.

    Raises `InvalidError` when the file cannot be read, and the errors of `uploaded_file`.
    """
    async with uploaded_file(request, actor) as parts:
        return await import_opt_outs(engine, parts, actor, claim, options)


class OptOutController(Controller):
    """Phones to which marketing messages are not sent.

    An opt-out outlives its client: a new client with the same phone is opted out too. A client who
    has opted out stays so with another phone, and so does the old phone.
    """

    path = "/opt-outs"
    tags = ("opt-outs",)
    dto = JsonBody
    return_dto = None

    @get(required_scope="read", **accepts_query(OptOutQuery, or_csv=True))
    async def list_opt_outs(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        query_params: NamedDependency[OptOutQuery],
    ) -> Page[OptOut]:
        """List opt-outs, newest first.

        With `Accept: text/csv` the response is a file of all opt-outs that have a client, whatever
        the filters, oldest first. It can be imported again.
        """
        if wants_csv(request):
            return await csv_answer(  # type: ignore[return-value]  # the OpenAPI schema shows the JSON response
                "opt-outs.csv", export_opt_outs(engine, by), by.quota_key
            )
        async with engine.connect() as connection:
            page = await store.page(connection, query_params.position, **query_params.filters())
        return page_of(page, request, lambda row: OptOut(**row._asdict()))

    @post(
        required_scope="write",
        responses={
            HTTPStatus.OK: ResponseSpec(OptOut, description="The phone was opted out already.")
        },
    )
    async def create_opt_out(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        data: JSONBody[OptOutPhone],
    ) -> Response[OptOut]:
        """Opt a phone out: marketing messages that are not sent yet are cancelled.

        That includes, within a second, messages that wait in a worker. 200 when the phone was opted
        out already. The phone need not be that of a client.
        """
        result = await service.opt_out(engine, data.phone, "api", by, claim)
        status = HTTPStatus.CREATED if result.is_new else HTTPStatus.OK
        return Response(result.opt_out, status_code=status)

    @post(
        "/delete",
        required_scope="write",
        status_code=HTTPStatus.NO_CONTENT,
        raises=[NotFoundException],
    )
    async def opt_in(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        data: JSONBody[OptOutPhone],
    ) -> None:
        """Opt a phone in again. 404 when it is not opted out.

        Messages that were cancelled stay so. Unlike in a DELETE, the phone is not in the address,
        which proxies may log.
        """
        await service.opt_in(engine, data.phone, by, claim)

    @post(
        "/import",
        required_scope="write",
        dto=None,
        status_code=HTTPStatus.OK,
        request_max_body_size=MAX_OPT_OUT_IMPORT_BYTES,
        operation_class=OptOutImportOperation,
        raises=[StalledUploadError],
    )
    async def import_opt_outs(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        request: Request[Any, Any, Any],
    ) -> OptOutImportReport:
        """Opt out all phones of a CSV file or Excel workbook.

        All valid lines are stored in one transaction. Invalid lines are rejected and reported, the
        first 100 with every wrong field. Phones that are opted out already count as unchanged.

        With `Accept: text/csv` the response is a file of all rejected lines, as in the import of
        clients.
        """
        query = read_query(request, ColumnQuery)
        return await import_or_return_rejected(  # type: ignore[return-value]  # the OpenAPI schema shows the JSON response
            request,
            by,
            claim,
            lambda rejected: import_opt_out_upload(
                engine, request, by, claim, query.options(rejected)
            ),
        )

    @delete("/{opt_out_id:int}", required_scope="write")
    async def delete_opt_out(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        opt_out_id: OptOutId,
    ) -> None:
        """Delete an opt-out: its phone is opted in again. Cancelled messages stay so."""
        await service.opt_in_by_id(engine, opt_out_id, by)
