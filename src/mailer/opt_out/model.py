"""An opt-out: a phone to which marketing messages are not sent."""

from datetime import datetime
from typing import Any, ClassVar, Literal

import msgspec

from mailer.client.model import Phone
from mailer.errors import NotFoundError
from mailer.validation import Input

OptOutSource = Literal["reply", "gateway", "page", "api", "import"]
"""How an opt-out came: by a stop word, the answer of a gateway, a page, the API, or a file."""


class OptOut(msgspec.Struct, frozen=True):
    """An opt-out. Only its client has the phone; without a client a keyed hash of it is stored."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "id": 3,
        "client_id": 1,
        "phone": "79161234567",
        "opted_out_at": "2030-01-15T09:30:00Z",
        "source": "reply",
        "gateway": "main",
    }

    id: int
    client_id: int | None
    """The client with this phone; null if there is none now."""
    phone: str | None
    """Null without a client."""
    opted_out_at: datetime
    source: OptOutSource
    """`reply`: a stop word; `gateway`: the answer of a gateway; `page`, `api`; `import`: a file."""
    gateway: str | None
    """The gateway of the reply or of the answer; null for other sources."""


class OptOutPhone(Input, frozen=True, kw_only=True):
    """A phone to opt out, or to opt in again. It need not be that of a client."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"phone": "79161234567"}

    phone: Phone


class OptOutNotFoundError(NotFoundError):
    """There is no such opt-out."""
