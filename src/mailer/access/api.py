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
from mailer.access.audit_log import Entry
from mailer.access.model import Kind
from mailer.errors import FieldError
from mailer.validation import STORABLE
from mailer.web.paging import Page, page_of
from mailer.web.query import Id, PageQuery, takes

KINDS_OF = {"actor_id": "actor_kind", "target_id": "target_kind"}
"""Numbers that tell something together with a kind alone."""


class AuditQuery(PageQuery, frozen=True, kw_only=True):
    """Which entries of the audit log."""

    actor_kind: Kind | UnsetType = UNSET
    actor_id: Id | UnsetType = UNSET
    action: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=64,
                pattern=STORABLE,
                examples=["mailing_paused"],
                extra={"rule": "must be 1 to 64 characters without NUL"},
            ),
        ]
        | UnsetType
    ) = UNSET
    target_kind: TargetKind | UnsetType = UNSET
    target_id: Id | UnsetType = UNSET

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:
        """Refuse a number of who knows what."""
        yield from super().broken_rules(values, at)
        for number, kind in KINDS_OF.items():
            if number in values and kind not in values:
                yield FieldError(number, "must come together with its kind")


class AuditController(Controller):
    """Who did what."""

    path = "/audit"
    tags = ("audit",)

    @get(needs="admin", **takes(AuditQuery))
    async def list_audit(
        self,
        engine: NamedDependency[AsyncEngine],
        request: Request[Any, Any, Any],
        asked: NamedDependency[AuditQuery],
    ) -> Page[Entry]:
        """List who did what to which thing, newest first, those that equal what is given.

        No more than 10,001 are counted: that `count` stands for more than 10,000.
        """
        async with engine.connect() as connection:
            found = await audit_log.page(connection, asked.position, **asked.equal())
        return page_of(found, request, audit_log.to_entry)
