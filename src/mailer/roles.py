"""Roles of users, and scopes, which say what a user or an API key may do."""

from typing import Literal

Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")
"""Roles of users, from the least powerful on."""
Scope = Literal["read", "write", "admin"]
"""Scopes of API keys and of roles. `read`: see clients, mailings and messages. `write`: also change
them. `admin`: also read the audit log and manage webhooks; users with this scope also see the
system's state and manage API keys and users."""
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
"""All scopes; each includes those before it."""
SCOPE_BY_ROLE: dict[Role, Scope] = {"viewer": "read", "operator": "write", "admin": "admin"}
"""What the users of each role may do."""


def parse_role_mapping(mapping: str) -> dict[str, Role]:
    """Return mailer's role by role name of an OpenID provider, as in the setting `oidc_roles`.

    `mapping` is a list of `role=name` separated by commas: a role of mailer and a name of the
    provider. Several names may map to one role. Raises `ValueError` when the list is malformed or
    contains a name twice.
    """
    roles: dict[str, Role] = {}
    for pair in mapping.split(","):
        role_text, _, provider_name = (part.strip() for part in pair.partition("="))
        role = next((role for role in ROLES if role == role_text), None)
        if role is None or not provider_name or provider_name in roles:
            raise ValueError
        roles[provider_name] = role
    return roles
