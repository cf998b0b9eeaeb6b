"""Pages of opt-outs: the list, adding one, opting in again, and export."""

from typing import Any

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.status_codes import HTTP_400_BAD_REQUEST
from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access.model import Actor
from mailer.admin.downloads import SeparatorQuery, default_separator, spreadsheet_layout
from mailer.admin.form import Form, read_form
from mailer.admin.language import gettext, use_language
from mailer.admin.listing import PageLinks, page_links, read_list_query
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.client.phone import normalize_phone
from mailer.client.phone_search import PhoneSearch
from mailer.clock import database_clock
from mailer.errors import InvalidError
from mailer.opt_out import service, store
from mailer.opt_out.api import OptOutId, OptOutQuery
from mailer.opt_out.exporting import export_opt_outs
from mailer.opt_out.model import OptOut, OptOutPhone
from mailer.validation import check
from mailer.web.download import csv_answer
from mailer.web.query import read_query
from mailer.web.workbook import workbook_answer
from mailer.web.workbook_layout import WorkbookColumn, WorkbookLayout

PATH = "/opt-outs"


class OptOutPage(msgspec.Struct, frozen=True):
    """One page of opt-outs, with its links."""

    count: int
    """Number of opt-outs on all pages of the list."""
    opt_outs: list[OptOut]
    pages: PageLinks


class OptOutListQuery(OptOutQuery, frozen=True, kw_only=True):
    """Filters of the list: those of the API, and a phone by its last digits."""

    phone: PhoneSearch | UnsetType = UNSET


class OptOuts(Controller):
    """The list of opt-outs, and the forms that add and delete one."""

    path = PATH

    @get(required_scope="read")
    async def list_opt_outs(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[str]:
        """List the opt-outs, newest first: all, or those of the phone in the URL."""
        form, query = read_list_query(request, OptOutListQuery, "phone")
        if query is None:
            return await context.render_page(
                "opt_outs/list.html", HTTP_400_BAD_REQUEST, form=form, page=None
            )
        async with engine.connect() as connection:
            page = await _read_page(connection, query, form)
        separator = default_separator(context.viewer.language)
        return await context.render_page(
            "opt_outs/list.html", form=form, page=page, separator=separator
        )

    @get("/export.csv", required_scope="read")
    async def export(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Download the opt-outs of clients as CSV that can be imported."""
        query = read_query(request, SeparatorQuery, blank_is_absent=True)
        layout = spreadsheet_layout(query.separator, context.viewer.language)
        rows = export_opt_outs(engine, by, layout=layout)
        return await csv_answer("opt-outs.csv", rows, by.quota_key)

    @get("/export.xlsx", required_scope="read")
    async def export_workbook(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        context: NamedDependency[PageContext],
    ) -> Response[Any]:
        """Download the opt-outs of clients as an Excel workbook to read."""
        with use_language(context.viewer.language):
            columns = [
                WorkbookColumn(gettext("Phone"), 14),
                WorkbookColumn(gettext("Time zone"), 20),
                WorkbookColumn(gettext("Opted out at, local time"), 26, "time"),
            ]
            layout = WorkbookLayout(gettext("Opt-outs"), columns)
        rows = export_opt_outs(engine, by, as_workbook=True)
        return await workbook_answer("opt-outs.xlsx", rows, layout, by.quota_key)

    @get("/new", required_scope="write")
    async def show_empty(self, context: NamedDependency[PageContext]) -> Response[str]:
        """Show the form that opts a phone out."""
        return await context.render_page("opt_outs/new.html", form=Form({"phone": ""}))

    @post("/new", required_scope="write")
    async def add(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Opt a phone out, or show the form again with its errors."""
        form = Form(await read_form(request, "phone"))
        try:
            phone = check(
                OptOutPhone, {"phone": normalize_phone(form["phone"])}, database_clock.now()
            )
        except InvalidError as error:
            form = form.with_errors(error)
            return await context.render_page("opt_outs/new.html", HTTP_400_BAD_REQUEST, form=form)
        result = await service.opt_out(engine, phone.phone, "page", by)
        flash = "opt-out-added" if result.is_new else "opt-out-unchanged"
        return redirect_with_flash(flash, PATH)

    @get("/{opt_out_id:int}/delete", required_scope="write")
    async def ask_to_delete(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        opt_out_id: OptOutId,
    ) -> Response[str]:
        """Ask for confirmation before a phone is opted in again."""
        async with engine.connect() as connection:
            opt_out = await store.get(connection, opt_out_id)
        return await context.render_page("opt_outs/delete.html", opt_out=opt_out)

    @post("/{opt_out_id:int}/delete", required_scope="write")
    async def delete(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        opt_out_id: OptOutId,
    ) -> Response[Any]:
        """Opt a phone in again."""
        await service.opt_in_by_id(engine, opt_out_id, by)
        return redirect_with_flash("opt-out-deleted", PATH)


async def _read_page(connection: AsyncConnection, query: OptOutListQuery, form: Form) -> OptOutPage:
    filters = query.filters()
    page = await store.page(connection, query.position, **filters)
    return OptOutPage(
        page.count,
        [OptOut(**row._asdict()) for row in page.rows],
        page_links(page, PATH, form),
    )
