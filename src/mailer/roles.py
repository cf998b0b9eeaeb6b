"""Roles of users, and the scopes that roles and API keys have."""

from typing import Literal

Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")
"""Roles of users, from the least powerful on."""
Scope = Literal["read", "write", "admin"]
"""Scopes of API keys and roles. `read`: see clients, mailings and messages. `write`: also change
them. `admin`: also read the audit log; users with this scope also see the system's state and manage
API keys and users."""
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
"""Each scope includes those before it."""
SCOPE_BY_ROLE: dict[Role, Scope] = {"viewer": "read", "operator": "write", "admin": "admin"}


def parse_role_mapping(mapping: str) -> dict[str, Role]:
    """Return mailer's role for each role name of an identity provider.

    `mapping` is a list of `role=name` separated by commas; several names may map to one role.
    Raises `ValueError` when the list is malformed or maps one name to two roles.
    """
    roles: dict[str, Role] = {}
    for pair in mapping.split(","):
        own_name, _, provider_name = (part.strip() for part in pair.partition("="))
        role = next((role for role in ROLES if role == own_name), None)
        if role is None or not provider_name or provider_name in roles:
            raise ValueError
        roles[provider_name] = role
    return roles
