"""Pages of lists in API responses."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

import msgspec
from litestar import Request
from sqlalchemy import Row

from mailer.db.paging import POSITION_PARAMETERS, RowPage

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

    def url_at(position: Mapping[str, int] | None) -> str | None:
        """Return the URL of the request with another position; None for no position."""
        if position is None:
            return None
        filters = [
            (name, value)
            for name, value in request.query_params.items()
            if name not in POSITION_PARAMETERS
        ]
        query = urlencode([*filters, *position.items()])
        return str(request.url.with_replacements(query=query))

    return Page(
        count=page.count,
        next=url_at(page.older_position()),
        previous=url_at(page.newer_position()),
        results=[convert(row) for row in page.rows],
    )
