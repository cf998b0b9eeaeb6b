"""The audit log: who did what to which thing, when and from where, before and after."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, get_args

import msgspec
from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit_log
from mailer.access.api import AuditQuery
from mailer.access.audit import TargetKind
from mailer.access.audit_log import MOST_COUNTED, Entry
from mailer.access.model import Kind
from mailer.admin import words
from mailer.admin.listing import NOTHING, asked, pages
from mailer.admin.render import Show
from mailer.mailing.model import kept_filter
from mailer.web.query import Limit

PATH = "/audit"
FIELDS = ("actor_kind", "actor_id", "action", "target_kind", "target_id", "limit")
MOMENTS = frozenset({"datetime_start", "datetime_end", "expires_at", "held_since"})
LASTING = {"mailing": "/mailings/{}", "client": "/clients/{}"}
"""Addresses of things, until what removes them is done to them."""
ROOMS = {"directory": "/clients", "key": "/keys", "account": "/people"}
REMOVES = frozenset({"mailing_deleted", "client_erased"})


class ListQuery(AuditQuery, frozen=True, kw_only=True):
    """Which entries to list."""

    limit: Limit = 50


class Change(msgspec.Struct, frozen=True):
    """A field of a thing before and after; what was not told is left out."""

    name: str
    sides: dict[str, Any]
    """Under "before", "after", or both."""


class Line(msgspec.Struct, frozen=True):
    """An entry as the page shows it."""

    entry: Entry
    changes: list[Change]
    address: str | None
    """Of the thing that it was done to."""


def line_of(entry: Entry) -> Line:
    """Return what the page shows of an entry."""
    told = {"before": entry.before or {}, "after": entry.after or {}}
    names = sorted({*told["before"], *told["after"]}, key=_place)
    changes = [
        Change(
            name, {side: _value(name, facts[name]) for side, facts in told.items() if name in facts}
        )
        for name in names
    ]
    return Line(entry, changes, _address(entry))


def _place(name: str) -> tuple[int, str]:
    known = list(words.FACTS)
    return known.index(name) if name in known else len(known), name


def _value(name: str, value: Any) -> Any:  # noqa: ANN401  # as JSON holds it
    """Return a value as templates know to write it."""
    if name in MOMENTS and value is not None:
        return datetime.fromisoformat(value)
    return kept_filter(value) if name == "client_filter" else value


def _address(entry: Entry) -> str | None:
    kind, target_id = entry.target.kind, entry.target.id
    if kind in LASTING:
        return None if entry.action in REMOVES else LASTING[kind].format(target_id)
    return ROOMS.get(kind)


class Audit(Controller):
    """The audit log."""

    path = PATH

    @get(needs="admin")
    async def list_audit(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
    ) -> Response[str]:
        """List the entries that are asked for."""
        form, query = asked(request, ListQuery, *FIELDS)
        found = NOTHING
        if query is not None:
            async with engine.connect() as connection:
                found = await audit_log.page(connection, query.position, **query.equal())
        choices: Mapping[str, Any] = {
            "actor_kinds": get_args(Kind),
            "target_kinds": [kind for kind in get_args(TargetKind) if kind in words.THINGS],
            "actions": words.ACTIONS,
        }
        return show.page(
            "audit/list.html",
            200 if query else 400,
            form=form,
            lines=[line_of(audit_log.to_entry(row)) for row in found.rows],
            count=found.count,
            most=MOST_COUNTED,
            pages=pages(found, PATH, form),
            **choices,
        )
