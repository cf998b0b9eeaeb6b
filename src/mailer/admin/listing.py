"""Lists of objects: the filter form in the query of a URL, and links to neighbouring pages."""

from typing import Any
from urllib.parse import urlencode

import msgspec
from litestar import Request

from mailer.admin.form import Form
from mailer.db.paging import RowPage
from mailer.errors import InvalidError
from mailer.validation import Model
from mailer.web.query import read_query

EMPTY_PAGE = RowPage([], 0, has_older=False, has_newer=False)
"""The result of a query that is known to match nothing."""


class PageLinks(msgspec.Struct, frozen=True):
    """URLs of the pages before and after one page of a list; None where there is no such page."""

    newer: str | None
    older: str | None


def read_list_query(
    request: Request[Any, Any, Any], model: type[Model], *fields: str
) -> tuple[Form, Model | None]:
    """Return the filter form of a list, and its query; None as query if the form is not valid."""
    form = Form({name: request.query_params.get(name, "") for name in fields})
    try:
        return form, read_query(request, model, blank_is_absent=True)
    except InvalidError as error:
        return form.with_errors(error), None


def list_url(path: str, form: Form, **more: object) -> str:
    """Return the URL of a list with the filters of `form` and the parameters `more`."""
    parameters = {name: value for name, value in form.values.items() if value} | more
    return f"{path}?{urlencode(parameters)}" if parameters else path


def page_links(page: RowPage, path: str, form: Form) -> PageLinks:
    """Return the URLs of the pages before and after `page`."""
    return PageLinks(
        list_url(path, form, after=page.rows[0].id) if page.has_newer else None,
        list_url(path, form, before=page.rows[-1].id) if page.has_older else None,
    )
