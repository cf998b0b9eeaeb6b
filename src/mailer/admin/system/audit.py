"""The audit log page: actor, action, target, time, address, and the changes of each action."""

from datetime import datetime
from typing import Any, get_args

import msgspec
from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit_log
from mailer.access.api import AuditQuery
from mailer.access.audit import TargetKind
from mailer.access.audit_log import MAX_COUNTED_ENTRIES, AuditEntry
from mailer.access.model import ActorKind
from mailer.admin import labels
from mailer.admin.listing import EMPTY_PAGE, page_links, read_list_query
from mailer.admin.render import PageContext
from mailer.mailing.client_filter import stored_filter
from mailer.web.query import Limit

PATH = "/audit"
AUDIT_FILTER_FIELDS = ("actor_kind", "actor_id", "action", "target_kind", "target_id", "limit")
"""Fields of the filter form, as in `AuditListQuery`."""
DATETIME_FIELDS = frozenset({"datetime_start", "datetime_end", "expires_at", "held_since"})
"""Fields of entries that are moments."""
TARGET_PAGES = {
    "mailing": "/mailings/{}",
    "client": "/clients/{}",
    "reply": "/replies/{}",
    "webhook": "/webhooks/{}",
}
"""URL of the page of a target, by the kind of target; `{}` is its id. A deleted target has none."""
TARGET_LISTS = {
    "directory": "/clients",
    "key": "/keys",
    "user": "/users",
    "gateway": "/gateways",
}
"""URL of the list to which targets without such a page belong, by the kind of target."""
DELETING_ACTIONS = frozenset({"mailing_deleted", "client_erased", "webhook_deleted"})
"""Actions whose entry has no link, because the target has no page afterwards."""


class AuditListQuery(AuditQuery, frozen=True, kw_only=True):
    """Filters of the audit log page: those of the API, with fewer entries on a page."""

    limit: Limit = 50


class AuditChange(msgspec.Struct, frozen=True):
    """The values of one field before and after an action."""

    field: str
    sides: dict[str, Any]
    """The values under "before" and "after"; one key is absent if the entry has only one value."""


class AuditLine(msgspec.Struct, frozen=True):
    """An audit entry as the page shows it."""

    entry: AuditEntry
    changes: list[AuditChange]
    target_url: str | None
    """URL of the target's page, or of the list it belongs to; None if it has neither."""


def to_line(entry: AuditEntry) -> AuditLine:
    """Return an entry as the page shows it."""
    sides = {"before": entry.before or {}, "after": entry.after or {}}

    def change_of(field: str) -> AuditChange:
        return AuditChange(
            field,
            {
                side: _template_value(field, values[field])
                for side, values in sides.items()
                if field in values
            },
        )

    changed_fields = sorted({*sides["before"], *sides["after"]}, key=_field_order)
    return AuditLine(entry, [change_of(field) for field in changed_fields], _target_url(entry))


def _field_order(field: str) -> tuple[int, str]:
    """Return a sort key: fields with a label in the order of the labels, then others by name."""
    labelled = list(labels.FIELD_LABELS)
    return labelled.index(field) if field in labelled else len(labelled), field


def _template_value(field: str, value: Any) -> Any:  # noqa: ANN401  # any JSON value
    """Return a value of the log, which is JSON, in the type that the template formats."""
    if field in DATETIME_FIELDS and value is not None:
        return datetime.fromisoformat(value)
    return stored_filter(value) if field == "client_filter" else value


def _target_url(entry: AuditEntry) -> str | None:
    """Return the URL of the target's page, or of the list it belongs to, if there is one."""
    kind, target_id = entry.target.kind, entry.target.id
    if kind in TARGET_PAGES:
        return None if entry.action in DELETING_ACTIONS else TARGET_PAGES[kind].format(target_id)
    return TARGET_LISTS.get(kind)


class Audit(Controller):
    """The audit log page, for admins."""

    path = PATH

    @get(required_scope="admin")
    async def list_audit(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
    ) -> Response[str]:
        """List the entries that match the filters."""
        form, query = read_list_query(request, AuditListQuery, *AUDIT_FILTER_FIELDS)
        page = EMPTY_PAGE
        if query is not None:  # all filters are valid
            async with engine.connect() as connection:
                page = await audit_log.page(connection, query.position, **query.filters())
        return await context.render_page(
            "audit/list.html",
            200 if query else 400,
            form=form,
            lines=[to_line(audit_log.to_entry(row)) for row in page.rows],
            count=page.count,
            max_counted=MAX_COUNTED_ENTRIES,
            pages=page_links(page, PATH, form),
            actor_kinds=get_args(ActorKind),
            target_kinds=get_args(TargetKind),
            actions=labels.ACTION_LABELS,
        )
