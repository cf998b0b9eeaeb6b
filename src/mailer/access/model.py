"""Who asks, and what they may do."""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mailer.settings import SCOPES, Role, Scope
from mailer.text import clean_label

# A name is told at terminals too, where control characters do things, and none may turn round what
# stands beside it (Unicode's Bidi_Control).
REFUSED = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"


def clean_name(text: str) -> str:
    """Return a name as `clean_label` has it; one with characters to refuse stays as it is."""
    return text if re.search(f"[{REFUSED}]", text) else clean_label(text)


Name = Annotated[
    str,
    Meta(
        max_length=64,
        pattern=rf"^(?!\s)[^{REFUSED}]+(?<!\s)(?!\n)$",
        extra={"rule": "must be 1 to 64 characters on one line", "normalize": clean_name},
    ),
]
"""What a key or an account is called."""
Kind = Literal["key", "account", "command", "anybody"]

SCOPE_OF: dict[Role, Scope] = {"viewer": "read", "operator": "write", "admin": "admin"}
"""What a person may do, by role."""


class Claim(msgspec.Struct):
    """A request under an Idempotency-Key that this process works on."""

    owner: str
    key: str
    attempt: str
    """A UUID: who works on it, of those that took it one after the other."""
    digest: bytes | None = None
    """Of the method, the address, the credential and the body; None until the body was read."""
    effect: dict[str, Any] | None = None
    """What an attempt before this one did, whose answer was lost."""


class Actor(msgspec.Struct, frozen=True):
    """Who does something: a key, a person, the command line, or anybody where nobody is asked."""

    kind: Kind
    name: str
    id: int | None = None
    scope: Scope = "read"
    address: str | None = None
    """The IP address that it came from; None at the command line."""
    claim: Claim | None = None
    session: bytes | None = None
    """The digest of the session that a person is signed in by."""

    @property
    def role(self) -> Role:
        """The role of a person who may do what it may do."""
        return next(role for role, scope in SCOPE_OF.items() if scope == self.scope)

    @property
    def account_id(self) -> int:
        """The account of a person; raises `TypeError` for who has none."""
        if self.kind != "account" or self.id is None:
            raise TypeError("only people have accounts")
        return self.id

    @property
    def caller(self) -> tuple[Kind, int] | None:
        """What counts as one where something is shared out; None where nobody is asked."""
        return None if self.id is None else (self.kind, self.id)

    @property
    def effect(self) -> dict[str, Any] | None:
        """What this very request has done already, or None."""
        return self.claim.effect if self.claim else None

    def may(self, needed: Scope) -> bool:
        """Whether it may do what needs a scope."""
        return SCOPES.index(self.scope) >= SCOPES.index(needed)


COMMAND_LINE = Actor("command", "command line", scope="admin")
