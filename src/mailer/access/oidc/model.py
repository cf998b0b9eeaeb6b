"""What signing in by an identity provider gives, and how it fails."""

import msgspec

from mailer.errors import ForbiddenError, UnavailableError
from mailer.settings import Role

TEXTS = {
    "disabled": "Your account is disabled. Ask whoever runs mailer.",
    "no_role": "Your account has no role here. Ask whoever runs mailer for one.",
}
"""What a person is told, where it is not to start again."""
BEFORE_ANYBODY = frozenset(
    {
        *("wrong_state", "state_used", "no_code", "refused_there"),
        *("code_refused", "client_refused", "refused"),
        *("wrong_issuer", "unsafe_endpoint"),
    }
)
"""Reasons that come up before the provider has said of anybody who they are, so that anybody at
all can bring them about."""


class Start(msgspec.Struct, frozen=True):
    """Where to send a browser, and what must be kept for its way back, out of everybody's sight.

    `state` comes back with the browser and must be compared; `nonce` and `verifier` go to `finish`.
    """

    url: str
    state: str
    nonce: str
    verifier: str


class Identity(msgspec.Struct, frozen=True):
    """Who signed in: `issuer` and `subject` together are one person for ever, `name` is to show."""

    issuer: str
    subject: str
    name: str
    role: Role


class SignInError(ForbiddenError):
    """The sign-in could not be completed. Start it again.

    `reason` is a fixed word for the log. `person` is who it is by issuer and subject, where a token
    that was checked has told: for finding the account, never to be shown or logged.
    """

    def __init__(self, reason: str = "unknown", person: tuple[str, str] | None = None) -> None:
        super().__init__(TEXTS.get(reason, ""))
        self.reason = reason
        self.person = person


class ProviderAwayError(UnavailableError):
    """The identity provider does not answer as it should. Try again later.

    `reason` is a fixed word for the log: `timeout`, `http_503`, ...
    """

    def __init__(self, reason: str = "unknown") -> None:
        super().__init__()
        self.reason = reason
