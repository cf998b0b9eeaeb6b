"""What a button of a mailing does, with the number of clients, and whether the user has agreed.

The button of the form says it, and so does the page that asks for confirmation. An *intent* is sent
back with the form as a text, `Intent.token`: so the server knows what the user has read. If that is
not what would happen now, because the form was changed or clients were added, the user is asked.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.admin.language import gettext_noop
from mailer.errors import FieldError, InvalidError
from mailer.mailing.client_filter import ClientFilter
from mailer.mailing.field_types import Purpose
from mailer.mailing.model import Mailing
from mailer.mailing.reach import count_more, count_reached
from mailer.mailing.text_reach import TextReach

SHOWN_FIELD, AGREED_FIELD, TYPED_FIELD = "shown", "agreed", "typed"
"""Fields of the forms: the intent that the clicked button of the form showed, the intent that the
page for confirmation showed, and the number of clients that was typed there."""
INTENT_FIELDS = (SHOWN_FIELD, AGREED_FIELD, TYPED_FIELD)
NOT_THE_NUMBER = gettext_noop("is not the number of clients above")


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """What happens if the user clicks the button."""

    kind: Literal["send", "schedule", "save"]
    """Sending begins at once, or at the start; `save`: a mailing that was launched is changed."""
    clients: int | None
    """Clients who will get the mailing; for `save`, those who will get it in addition. None while
    the audience is not known."""
    without_text: int = 0
    """Clients of the audience who will not get it because of their fields. They are not among
    `clients`; a `save` does not know them."""
    start: datetime | None = None
    """The start; None while it is not known."""
    content_digest: str = ""
    """That of the mailing, if it is not in the form that the user sends."""

    @property
    def token(self) -> str:
        """The intent as a text; empty while the form is not complete, which agrees to nothing."""
        start = self.start.isoformat() if self.kind == "schedule" and self.start else ""
        is_complete = self.clients is not None and (start or self.kind != "schedule")
        parts = (self.kind, str(self.clients), start, self.content_digest)
        return " ".join(filter(None, parts)) if is_complete else ""

    @property
    def audience(self) -> int:
        """The clients for whom the mailing may need approval, also those without the text."""
        return (self.clients or 0) + self.without_text

    def must_type(self, confirm_above: int) -> bool:
        """Return whether the user must type the number of clients."""
        return (self.clients or 0) > confirm_above

    def is_agreed(self, values: Mapping[str, str], confirm_above: int) -> bool:
        """Return whether the user has agreed to the intent in a form.

        Up to `confirm_above` clients, the button of the form is enough, if it said so; above, and
        for more clients of a mailing that was launched, only the page for confirmation is. Raises
        `InvalidError` if the number of clients that was typed there is wrong.
        """
        if self.kind == "save" and not self.clients:
            return True
        if values[AGREED_FIELD] != self.token or not self.token:
            is_shown = self.token != "" and values[SHOWN_FIELD] == self.token
            return is_shown and self.kind != "save" and not self.must_type(confirm_above)
        # the number may be typed with the separators with which it is shown
        if self.must_type(confirm_above) and re.sub(r"\D", "", values[TYPED_FIELD]) != str(
            self.clients
        ):
            raise InvalidError([FieldError(TYPED_FIELD, NOT_THE_NUMBER)])
        return True


async def count_getting(
    connection: AsyncConnection,
    client_filter: ClientFilter,
    purpose: Purpose,
    reach: TextReach | None,
) -> int:
    """Return how many clients will get a mailing, as a button says it.

    `reach` is that of its text, if it has placeholders. Above 10,000 clients it is an estimate.
    """
    clients = await count_reached(connection, client_filter, purpose)
    return clients if reach is None else max(0, clients - reach.unreached)


def launch_intent(draft: Mailing, now: datetime, clients: int | None = None) -> Intent:
    """Return what launching a draft does; `clients` are those whom it reaches, if known."""
    start = draft.datetime_start
    return Intent(
        kind="send" if start <= now else "schedule",
        clients=clients,
        start=start,
        content_digest=draft.content_digest if clients is not None else "",
    )


async def read_intent(  # noqa: PLR0913, PLR0917  # the values of a form, and what they change
    connection: AsyncConnection,
    mailing: Mailing | None,
    client_filter: ClientFilter | UnsetType,
    purpose: Purpose,
    start: datetime | None,
    now: datetime,
    reach: TextReach | None,
) -> Intent:
    """Return what saving these values does. `mailing` is the one that is changed, if any.

    `client_filter` is UNSET and `start` is None while they are not known. `reach` is that of the
    text, if it has placeholders and the audience is known.
    """
    if mailing is not None and mailing.status not in {"draft", "scheduled"}:
        more = 0
        if client_filter not in (UNSET, mailing.client_filter):
            more = await count_more(connection, mailing, client_filter)
        return Intent(kind="save", clients=more)
    clients = None
    if client_filter is not UNSET:
        clients = await count_getting(connection, client_filter, purpose, reach)
    is_due = start is not None and start <= now
    return Intent(
        kind="send" if is_due else "schedule",
        clients=clients,
        without_text=0 if reach is None else reach.unreached,
        start=start,
    )
