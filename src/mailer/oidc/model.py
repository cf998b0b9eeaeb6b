"""Results and errors of signing in with an OpenID provider.

A sign-in has two steps: mailer redirects the browser to the provider, and the provider redirects it
back to a route of mailer, the callback.
"""

import msgspec

from mailer.errors import ForbiddenError, UnavailableError
from mailer.roles import Role

REASON_TEXTS = {
    "disabled": "You have been disabled and cannot sign in. Ask your administrator.",
    "no_role": "You have no role in mailer. Ask your administrator for one.",
}
"""Texts for users, for reasons that another sign-in would not solve; others have a general text."""
REASONS_WITHOUT_IDENTITY = frozenset(
    {
        *("wrong_state", "state_used", "no_code", "refused_by_provider"),
        *("code_refused", "client_refused", "refused"),
        *("wrong_issuer", "unsafe_endpoint"),
    }
)
"""Reasons of sign-ins that fail before the provider identifies a user. Anybody can cause them, also
without being a user of the provider."""


class SignInStart(msgspec.Struct, frozen=True):
    """A started sign-in: the URL to redirect to, and secrets to store until the callback.

    The caller compares `state` with the one in the callback, which shows that the callback belongs
    to this sign-in. `nonce` and `verifier` go to `Provider.finish`.
    """

    url: str
    state: str
    nonce: str
    verifier: str


class Identity(msgspec.Struct, frozen=True):
    """A user as identified by the provider.

    `issuer` and `subject` together identify the user permanently; `name` is for display only.
    """

    issuer: str
    subject: str
    name: str
    role: Role


class SignInError(ForbiddenError):
    """The sign-in could not be completed. Start it again.

    `reason` is a fixed word for the log. `issuer_and_subject` identify the user if a verified token
    names one. They are used to find the user in the database, and are never shown or logged.
    """

    def __init__(
        self, reason: str = "unknown", issuer_and_subject: tuple[str, str] | None = None
    ) -> None:
        super().__init__(REASON_TEXTS.get(reason, ""))
        self.reason = reason
        self.issuer_and_subject = issuer_and_subject


class ProviderUnavailableError(UnavailableError):
    """The OpenID provider does not answer correctly. Try again later.

    `reason` is a fixed word for the log: `timeout`, `http_503`, ...
    """

    def __init__(self, reason: str = "unknown") -> None:
        super().__init__()
        self.reason = reason
