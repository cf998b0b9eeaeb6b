"""Write entries about mailings to the audit log."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access import audit
from mailer.access.model import Actor
from mailer.mailing.model import MailingChange

AUDITED_FIELDS = frozenset({*MailingChange.__struct_fields__, "status"})
"""Fields of a mailing that the audit log records."""


async def write_audit_entry(  # noqa: PLR0913  # the fields of an audit log entry
    connection: AsyncConnection,
    actor: Actor,
    action: str,
    mailing_id: int,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write an audit log entry in the caller's transaction.

    `action` is what was done, such as `mailing_paused`. `before` and `after` are the old and new
    values of fields or columns, of which only the `AUDITED_FIELDS` are recorded.
    """
    await audit.record(
        connection,
        actor,
        action,
        audit.Target("mailing", mailing_id),
        before=_only_audited(before or {}) or None,
        after=_only_audited(after or {}) or None,
    )


def _only_audited(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in values.keys() & AUDITED_FIELDS}
