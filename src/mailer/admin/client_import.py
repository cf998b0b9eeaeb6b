"""Import of a file of clients: the page, and the answer that its script puts there."""

from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import HTTPException
from litestar.status_codes import HTTP_200_OK
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.render import Show, show_of
from mailer.client.rows import COLUMNS
from mailer.client.upload import IMPORT_LIMIT, import_upload
from mailer.errors import MailerError
from mailer.web.problems import problem_of


def on_refusal(request: Request[Any, Any, Any], error: Exception) -> Response[str]:
    """Answer why a file as a whole was not imported."""
    answer = problem_of(request, error)
    show = show_of(request, request.app.state.breaker)
    return show.problem("clients/import_refused.html", answer)


class ClientImport(Controller):
    """Clients from a CSV file."""

    path = "/clients/import"

    @get(needs="write")
    async def show_import(self, show: NamedDependency[Show]) -> Response[str]:
        """Show what a file looks like, and take one."""
        return show.page("clients/import.html", limit=IMPORT_LIMIT, columns=COLUMNS)

    @post(
        needs="write",
        status_code=HTTP_200_OK,
        request_max_body_size=IMPORT_LIMIT,
        exception_handlers=dict.fromkeys((MailerError, HTTPException, Exception), on_refusal),
    )
    async def import_file(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        show: NamedDependency[Show],
        request: Request[Any, Any, Any],
    ) -> Response[str]:
        """Import a file as the API does, and tell what became of it."""
        report = await import_upload(engine, request, by)
        return show.page("clients/import_report.html", report=report)
