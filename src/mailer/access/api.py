"""Routes of the audit log."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any

from litestar import Controller, Request, get
from litestar.di import NamedDependency
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import audit_log
from mailer.access.audit import TargetKind
from mailer.access.audit_log import AuditEntry
from mailer.access.model import ActorKind
from mailer.errors import FieldError
from mailer.validation import STORABLE
from mailer.web.paging import Page, page_of
from mailer.web.query import Id, PageQuery, accepts_query

KIND_BY_ID = {"actor_id": "actor_kind", "target_id": "target_kind"}
"""Each parameter with an id, and the parameter with the kind of the object. An id is unique only
among objects of one kind, so it needs the kind."""


class AuditQuery(PageQuery, frozen=True, kw_only=True):
    """Query parameters of the audit log: filters, and the position of the page."""

    actor_kind: ActorKind | UnsetType = UNSET
    actor_id: Id | UnsetType = UNSET
    action: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=64,
                pattern=STORABLE,
                examples=["mailing_paused"],
                extra={"rule": "must be 1 to 64 characters, without null characters"},
            ),
        ]
        | UnsetType
    ) = UNSET
    target_kind: TargetKind | UnsetType = UNSET
    target_id: Id | UnsetType = UNSET

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:
        """Reject an id without its kind, and `before` together with `after`."""
        yield from super().broken_rules(values, at)
        for id_name, kind_name in KIND_BY_ID.items():
            if id_name in values and kind_name not in values:
                yield FieldError(id_name, "requires the parameter of its kind")


class AuditController(Controller):
    """The audit log."""

    path = "/audit"
    tags = ("audit",)

    @get(required_scope="admin", **accepts_query(AuditQuery))
    async def list_audit(
        self,
        engine: NamedDependency[AsyncEngine],
        request: Request[Any, Any, Any],
        query_params: NamedDependency[AuditQuery],
    ) -> Page[AuditEntry]:
        """List the entries of the audit log, newest first.

        Only entries that match all given parameters are listed. `count` is at most 10,001, which
        means more than 10,000.
        """
        async with engine.connect() as connection:
            rows = await audit_log.page(connection, query_params.position, **query_params.filters())
        return page_of(rows, request, audit_log.to_entry)
