"""Import of opt-outs from a CSV file: the page, and the results that `import.js` shows there."""

from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.status_codes import HTTP_200_OK
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.render import PageContext, create_page_context
from mailer.client.api import uploaded_file
from mailer.opt_out.api import MAX_OPT_OUT_IMPORT_BYTES
from mailer.opt_out.importing import import_opt_outs
from mailer.web.problems import problem_of


def render_refusal(request: Request[Any, Any, Any], error: Exception) -> Response[str]:
    """Return the section of the page that says why a whole file was not imported."""
    response = problem_of(request, error)
    context = create_page_context(request, request.app.state.channels)
    return context.render_problem("opt_outs/import_refused.html", response)


class OptOutImport(Controller):
    """The import page."""

    path = "/opt-outs/import"

    @get(required_scope="write")
    async def show_import(self, context: NamedDependency[PageContext]) -> Response[str]:
        """Show the form and the file format."""
        return await context.render_page("opt_outs/import.html", limit=MAX_OPT_OUT_IMPORT_BYTES)

    @post(
        required_scope="write",
        status_code=HTTP_200_OK,
        request_max_body_size=MAX_OPT_OUT_IMPORT_BYTES,
        exception_handlers={Exception: render_refusal},
    )
    async def import_file(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[str]:
        """Import a file as the API does, and return the section of the page with the result."""
        async with uploaded_file(request, by) as parts:
            report = await import_opt_outs(engine, parts, by)
        return await context.render_page("opt_outs/import_report.html", report=report)
