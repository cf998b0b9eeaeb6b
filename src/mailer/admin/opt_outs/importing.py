"""Import of opt-outs from a CSV file: the page, and the results that `import.js` shows there."""

from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.clients.importing import read_options, rejected_lines, upload_options
from mailer.admin.render import PageContext
from mailer.client.upload import rejected_answer, uploaded_file
from mailer.opt_out.api import MAX_OPT_OUT_IMPORT_BYTES, import_opt_out_upload
from mailer.opt_out.importing import OPT_OUT_COLUMNS, preview_opt_outs

OPT_OUT_UPLOAD_OPTIONS = upload_options(MAX_OPT_OUT_IMPORT_BYTES, "opt_outs/import_refused.html")


class OptOutImport(Controller):
    """The import page. As that of clients, it sends the file again with each request."""

    path = "/opt-outs/import"

    @get(required_scope="write")
    async def show_import(self, context: NamedDependency[PageContext]) -> Response[str]:
        """Show the form and the file format."""
        return await context.render_page("opt_outs/import.html", limit=MAX_OPT_OUT_IMPORT_BYTES)

    @post(**OPT_OUT_UPLOAD_OPTIONS)
    async def import_file(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[str]:
        """Import a file as the API does, and return the section of the page with the result."""
        report = await import_opt_out_upload(engine, request, by, options=read_options(request))
        return await context.render_page("opt_outs/import_report.html", report=report)

    @post("/preview", **OPT_OUT_UPLOAD_OPTIONS)
    async def preview_file(
        self,
        by: NamedDependency[Actor],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[str]:
        """Read a file and store nothing; return the section of the page with the preview."""
        async with uploaded_file(request, by) as parts:
            preview = await preview_opt_outs(parts, read_options(request))
        return await context.render_page(
            "opt_outs/import_preview.html",
            preview=preview,
            fields=[column.name for column in OPT_OUT_COLUMNS],
            field_prefix="",
        )

    @post("/rejected", **OPT_OUT_UPLOAD_OPTIONS)
    async def download_rejected(
        self,
        by: NamedDependency[Actor],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Read a file and store nothing; return its rejected lines as a file."""
        with rejected_lines(context) as rejected:
            async with uploaded_file(request, by) as parts:
                await preview_opt_outs(parts, read_options(request, rejected))
            return await rejected_answer(rejected, by)
