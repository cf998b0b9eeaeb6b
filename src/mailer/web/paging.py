"""A page of a list as the API shows it."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

import msgspec
from litestar import Request
from sqlalchemy import Row

from mailer.db.paging import Slice

Item = TypeVar("Item")


class Page(msgspec.Struct, Generic[Item], frozen=True):
    """A page, newest first; `next` leads to older ones, `previous` to newer ones."""

    count: int
    next: str | None
    previous: str | None
    results: list[Item]


def page_of(
    found: Slice, request: Request[Any, Any, Any], show: Callable[[Row[Any]], Item]
) -> Page[Item]:
    """Return `found` as a page, with the addresses of its neighbours."""

    def address(**cursor: int) -> str:
        kept = {k: v for k, v in request.query_params.items() if k not in ("before", "after")}
        return str(request.url.with_replacements(query=urlencode(kept | cursor)))

    return Page(
        found.count,
        address(before=found.rows[-1].id) if found.has_older else None,
        address(after=found.rows[0].id) if found.has_newer else None,
        [show(row) for row in found.rows],
    )
