"""Actors (API keys, users, the command line) and the scopes that they have."""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mailer.roles import SCOPE_BY_ROLE, SCOPES, Role, Scope
from mailer.text import clean_label

# Names are also printed on terminals, which execute control characters. Unicode's Bidi_Control
# characters would reverse the text beside a name.
FORBIDDEN_CHARACTERS = (
    r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
)


def clean_name(text: str) -> str:
    """Normalize a name with `clean_label`; return it unchanged if it has forbidden characters."""
    return text if re.search(f"[{FORBIDDEN_CHARACTERS}]", text) else clean_label(text)


Name = Annotated[
    str,
    Meta(
        max_length=64,
        # no blank at either end; (?!\n) since `$` also matches before a final line feed
        pattern=rf"^(?!\s)[^{FORBIDDEN_CHARACTERS}]+(?<!\s)(?!\n)$",
        extra={"rule": "must be 1 to 64 characters on one line", "normalize": clean_name},
    ),
]
"""The name of an API key or a user."""
ActorKind = Literal["key", "user", "command", "anonymous", "system"]


class Actor(msgspec.Struct, frozen=True):
    """The author of an action.

    An API key, a signed-in user, the command line, mailer itself, or an anonymous request: one
    without authentication, such as a failed sign-in or any request under `MAILER_AUTH=none`.
    """

    kind: ActorKind
    name: str
    id: int | None = None
    scope: Scope = "read"
    address: str | None = None
    """The IP address of the request; None for the command line."""
    session: bytes | None = None
    """The digest of the session that a user's request came with; None for all other actors."""

    @property
    def role(self) -> Role:
        """The role that has this actor's scope."""
        return next(role for role, scope in SCOPE_BY_ROLE.items() if scope == self.scope)

    @property
    def user_id(self) -> int:
        """The id of the user; raises `TypeError` for any other kind of actor."""
        if self.kind != "user" or self.id is None:
            raise TypeError("the actor is not a user")
        return self.id

    @property
    def quota_key(self) -> tuple[ActorKind, int] | None:
        """What identifies this actor to limiters; None for an actor without an id."""
        return None if self.id is None else (self.kind, self.id)

    def may(self, needed: Scope) -> bool:
        """Return whether the actor's scope includes `needed`."""
        return SCOPES.index(self.scope) >= SCOPES.index(needed)


COMMAND_LINE = Actor("command", "command line", scope="admin")
"""The actor of commands, such as `mailer users`."""
SYSTEM = Actor("system", "mailer", scope="admin")
"""The actor of what mailer does by itself, such as to disable a webhook that keeps failing."""
