"""Lists of objects, page by page: the filter form, and the links to the newer and the older page.

The filter and the position in the list are in the query of the URL, as in the API.
"""

from collections.abc import Mapping
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
"""A page without rows: of a query that is not valid, or is known to match nothing."""


class PageLinks(msgspec.Struct, frozen=True):
    """URLs of the pages with the next newer and the next older rows; None if there are none."""

    newer: str | None
    older: str | None


def read_list_query(
    request: Request[Any, Any, Any], model: type[Model], *fields: str
) -> tuple[Form, Model | None]:
    """Return the filter form of a list with its `fields`, and the query as a `model`.

    If the form is not valid, it has errors and the query is None.
    """
    form = Form({name: _text_of(request, name) for name in fields})
    try:
        return form, read_query(request, model, blank_is_absent=True)
    except InvalidError as error:
        return form.with_errors(error), None


def _text_of(request: Request[Any, Any, Any], name: str) -> str:
    """Return the text of a filter; commas separate the values of one that is repeated."""
    return ",".join(request.query_params.getall(name, []))


def list_url(path: str, form: Form, position: Mapping[str, int] | None = None) -> str:
    """Return the URL of a list with the filters of `form`.

    `position` is that of a page, as `RowPage` returns it; None for the first page.
    """
    filters = {name: value for name, value in form.values.items() if value}
    parameters = {**filters, **(position or {})}
    return f"{path}?{urlencode(parameters)}" if parameters else path


def page_links(page: RowPage, path: str, form: Form) -> PageLinks:
    """Return the links of `page`, whose rows are the newest first, with the filters of `form`."""
    newer, older = page.newer_position(), page.older_position()
    return PageLinks(
        newer=list_url(path, form, newer) if newer else None,
        older=list_url(path, form, older) if older else None,
    )
