"""Import of clients from a file: the page, and the results that `import.js` shows there."""

from functools import partial
from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.status_codes import HTTP_200_OK
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.clients.field_proposals import propose_names, select_fields
from mailer.admin.language import translate_message, use_language
from mailer.admin.render import PageContext, create_page_context
from mailer.client.api import MAX_IMPORT_BYTES, import_upload
from mailer.client.field_columns import FIELD_PREFIX, field_name
from mailer.client.field_names import known_field_names
from mailer.client.lists import store as lists
from mailer.client.lists.model import ListChoice
from mailer.client.previewing import preview_clients
from mailer.client.reading import ImportOptions
from mailer.client.rejected import RejectedLines
from mailer.client.rows import CSV_COLUMNS
from mailer.client.upload import rejected_answer, uploaded_file
from mailer.clock import database_clock
from mailer.validation import check
from mailer.web.problems import problem_of


def render_refusal(
    template: str, request: Request[Any, Any, Any], error: Exception
) -> Response[str]:
    """Return the section of the page that says why a whole file was not imported."""
    response = problem_of(request, error)
    context = create_page_context(request, request.app.state.channels)
    return context.render_problem(template, response)


def upload_options(limit: int, refusal_template: str) -> dict[str, Any]:
    """Return the options of routes that take a file of at most `limit` bytes."""
    return {
        "required_scope": "write",
        "status_code": HTTP_200_OK,
        "request_max_body_size": limit,
        "exception_handlers": {Exception: partial(render_refusal, refusal_template)},
    }


UPLOAD_OPTIONS = upload_options(MAX_IMPORT_BYTES, "clients/import_refused.html")


def read_options(
    request: Request[Any, Any, Any], rejected: RejectedLines | None = None
) -> ImportOptions:
    """Return the options in the query: `columns` has the field of each column, with commas.

    `list` is the name of the list to put the clients on. Raises `InvalidError` when it is wrong.
    """
    columns = request.query_params.get("columns")
    given = {"list": name} if (name := request.query_params.get("list")) else {}
    choice = check(ListChoice, given, database_clock.now())
    return ImportOptions(
        None if columns is None else columns.split(","), rejected, choice.list_name
    )


def rejected_lines(context: PageContext) -> RejectedLines:
    """Return what collects rejected lines, with the reasons in the viewer's language."""

    def translate(message: str) -> str:
        with use_language(context.viewer.language):
            return translate_message(message)

    return RejectedLines(translate)


class ClientImport(Controller):
    """The import page.

    The script sends the file again with each request: for the preview, the import and the rejected
    lines. So no worker has to store it in between.
    """

    path = "/clients/import"

    @get(required_scope="write")
    async def show_import(
        self, engine: NamedDependency[AsyncEngine], context: NamedDependency[PageContext]
    ) -> Response[str]:
        """Show the form and the file format."""
        async with engine.connect() as connection:
            list_names = await lists.find_newest_names(connection)
        return await context.render_page(
            "clients/import.html",
            limit=MAX_IMPORT_BYTES,
            columns=CSV_COLUMNS,
            list_names=list_names,
        )

    @post(**UPLOAD_OPTIONS)
    async def import_file(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[str]:
        """Import a file as the API does, and return the section of the page with the result."""
        report = await import_upload(engine, request, by, options=read_options(request))
        return await context.render_page("clients/import_report.html", report=report)

    @post("/preview", **UPLOAD_OPTIONS)
    async def preview_file(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[str]:
        """Read a file and store nothing; return the section of the page with the preview."""
        async with engine.connect() as connection:
            known_names = await known_field_names(connection)
        options = read_options(request)._replace(extra=select_fields(known_names))
        async with uploaded_file(request, by) as parts:
            preview = await preview_clients(engine, parts, options)
        layout = preview.layout
        return await context.render_page(
            "clients/import_preview.html",
            preview=preview,
            fields=CSV_COLUMNS,
            field_names=list(filter(None, map(field_name, layout.fields))),
            proposed_names=propose_names(layout.names, layout.fields),
            known_names=known_names,
            field_prefix=FIELD_PREFIX,
        )

    @post("/rejected", **UPLOAD_OPTIONS)
    async def download_rejected(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Read a file and store nothing; return its rejected lines as a file."""
        with rejected_lines(context) as rejected:
            async with uploaded_file(request, by) as parts:
                await preview_clients(engine, parts, read_options(request, rejected))
            return await rejected_answer(rejected, by)
