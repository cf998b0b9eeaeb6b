"""Pages of lists in API responses."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

import msgspec
from litestar import Request
from sqlalchemy import Row

from mailer.db.paging import RowPage

Item = TypeVar("Item")


class Page(msgspec.Struct, Generic[Item], frozen=True):
    """A page of a list, newest first. `next` is the URL of older rows, `previous` of newer rows."""

    count: int
    next: str | None
    previous: str | None
    results: list[Item]


def page_of(
    page: RowPage, request: Request[Any, Any, Any], convert: Callable[[Row[Any]], Item]
) -> Page[Item]:
    """Convert a page of rows to a response, with the URLs of the next and the previous page.

    `convert` converts one row.
    """

    def url_with(**cursor: int) -> str:
        """Return the URL of the request with another cursor."""
        filters = {
            name: value
            for name, value in request.query_params.items()
            if name not in ("before", "after")
        }
        return str(request.url.with_replacements(query=urlencode(filters | cursor)))

    return Page(
        count=page.count,
        next=url_with(before=page.rows[-1].id) if page.has_older else None,
        previous=url_with(after=page.rows[0].id) if page.has_newer else None,
        results=[convert(row) for row in page.rows],
    )
