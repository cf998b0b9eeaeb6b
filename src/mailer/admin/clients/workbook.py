"""Download of the clients as an Excel workbook."""

from collections.abc import Iterable
from typing import Any

from litestar import Request, get
from litestar.di import NamedDependency
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.clients.form import ClientDownloadQuery, read_filter
from mailer.admin.language import gettext, use_language
from mailer.admin.render import PageContext
from mailer.client.exporting import export_clients
from mailer.client.field_columns import field_column, header_of
from mailer.client.field_names import known_field_names
from mailer.web.download import Download
from mailer.web.query import read_unvalidated_query
from mailer.web.workbook import workbook_answer
from mailer.web.workbook_layout import WorkbookColumn, WorkbookLayout


@get("/clients.xlsx", required_scope="read")
async def download_clients(
    engine: NamedDependency[AsyncEngine],
    by: NamedDependency[Actor],
    context: NamedDependency[PageContext],
    request: Request[Any, Any, Any],
) -> Download:
    """Download all clients that match the filter, oldest first. The file can be imported."""
    parameters = read_unvalidated_query(request, blank_is_absent=True)
    query = read_filter(parameters, ClientDownloadQuery)  # the form has a separator, for CSV
    async with engine.connect() as connection:
        field_names = sorted(await known_field_names(connection))
    with use_language(context.viewer.language):
        layout = _layout(field_names)
    rows = export_clients(engine, by, workbook_fields=field_names, **query.filters())
    return await workbook_answer("clients.xlsx", rows, layout, by.quota_key)


def _layout(field_names: Iterable[str]) -> WorkbookLayout:
    """Return the columns, whose headings an import knows in each language."""
    return WorkbookLayout(
        gettext("Clients"),
        [
            WorkbookColumn(gettext("Phone"), 14),
            WorkbookColumn(gettext("Operator code"), 14),
            WorkbookColumn(gettext("Tag"), 20),
            WorkbookColumn(gettext("Time zone"), 20),
            *(WorkbookColumn(header_of(field_column(name)), 20) for name in field_names),
        ],
    )
