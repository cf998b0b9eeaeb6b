"""Imports by the API and the pages: the upload of a file, the choice of its columns, the answer."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any, TypeVar, get_args

from litestar import Request
from litestar.exceptions import HTTPException
from litestar.openapi.spec import (
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    RequestBody,
    Schema,
)
from msgspec import UNSET, Meta, UnsetType

from mailer.access.model import Actor
from mailer.client.decoding import Encoding
from mailer.client.layout import MAX_COLUMNS
from mailer.client.reading import ImportOptions
from mailer.client.rejected import RejectedLines
from mailer.client.workbook import require_workbook
from mailer.errors import FieldError, InvalidError
from mailer.idempotency.model import IdempotencyClaim
from mailer.limits import ConcurrencyLimiter
from mailer.validation import Input
from mailer.web.body import read_with_stall_timeout
from mailer.web.download import Download, csv_answer, wants_csv
from mailer.web.query import query_parameters
from mailer.web.workbook import XLSX_TYPE

COUNTS_HEADER = "Import-Counts"
"""The header with the counts of an import whose response is the file of rejected lines."""
COUNTS = ("created", "updated", "unchanged", "rejected")
"""The counts in that header; an import of opt-outs updates nothing."""
MAX_CONCURRENT_IMPORTS = 2
"""Imports at once. Each occupies a connection of the pool that all requests share."""
CHARSETS = frozenset({"utf8", "cp1251", *(name.lower() for name in get_args(Encoding))})
"""Charsets accepted in Content-Type. The encoding itself is detected from the file."""
IMPORT_LIMITER = ConcurrencyLimiter(MAX_CONCURRENT_IMPORTS, per_owner=1, timeout=5.0)
"""Allows each API key or user one import at once. Another one waits up to 5 seconds for a slot."""

ImportResult = TypeVar("ImportResult")


class ColumnQuery(Input, frozen=True, kw_only=True):
    """Query parameter of every import: what the columns of the file are."""

    columns: (
        Annotated[
            list[str],
            Meta(
                max_length=MAX_COLUMNS,
                description="What each column of the file is, in the file's order, instead of what"
                " its header says: the name of a column that the description of the body names, or"
                " nothing for a column to ignore. In a file of clients, another name is that of a"
                " field, for example `phone,,name`. A field that is called like a column is written"
                " as `fields.tag`.",
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
        return ImportOptions(columns, rejected)


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


async def import_or_return_rejected(
    request: Request[Any, Any, Any],
    actor: Actor,
    claim: IdempotencyClaim | None,
    run_import: Callable[[RejectedLines | None], Awaitable[ImportResult]],
) -> ImportResult | Download:
    """Return the report of an import, or with `Accept: text/csv` the file of its rejected lines.

    `run_import` imports the file in the body; its argument receives all rejected lines. Raises
    `InvalidError` for that file under an Idempotency-Key, because the response would be stored.
    """
    if not wants_csv(request):
        return await run_import(None)
    if claim is not None:
        message = "cannot be given together with Accept: text/csv"
        raise InvalidError([FieldError("Idempotency-Key", message)])
    with RejectedLines() as rejected:
        report = await run_import(rejected)
        answer = await rejected_answer(rejected, actor)
    counts = (f"{name}={getattr(report, name)}" for name in COUNTS if hasattr(report, name))
    answer.headers[COUNTS_HEADER] = ", ".join(counts)
    return answer


async def rejected_answer(rejected: RejectedLines, actor: Actor) -> Download:
    """Return a response that downloads the rejected lines."""
    return await csv_answer("rejected.csv", rejected.parts(), actor.quota_key)


def describe_upload(
    operation: Operation, query: type[ColumnQuery], description: str, example: str
) -> None:
    """Describe an import in OpenAPI: its query, and its body, which the handler reads itself.

    `description` and `example` are those of the body as CSV.
    """
    operation.parameters = [*(operation.parameters or ()), *query_parameters(query)]
    text = Schema(type=OpenAPIType.STRING, description=description)
    workbook = Schema(
        type=OpenAPIType.STRING,
        format=OpenAPIFormat.BINARY,
        description="The first sheet has the same columns, with or without a header."
        " At most 64 MiB.",
    )
    content = {
        "text/csv": OpenAPIMediaType(schema=text, example=example),
        XLSX_TYPE: OpenAPIMediaType(schema=workbook),
    }
    operation.request_body = RequestBody(content=content, required=True)
