"""One tree of errors; the web edge turns its families into problems, nothing below knows HTTP."""

from collections.abc import Sequence

import msgspec


class FieldError(msgspec.Struct, frozen=True):
    """What is wrong with one field of what was given."""

    field: str
    message: str


class MailerError(Exception):
    """Whatever mailer refuses or cannot do; its text is one line for a person.

    Unless a message is given, the class's own first line is it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").split("\n", maxsplit=1)[0])


class InvalidError(MailerError):
    """What was given breaks a rule; names every wrong field."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))
        self.errors = tuple(errors)


class ForbiddenError(MailerError):
    """Who asks may not do this."""


class NotFoundError(MailerError):
    """What was asked for does not exist."""


class ConflictError(MailerError):
    """The request clashes with the present state."""


class UnavailableError(MailerError):
    """It cannot be done now, and may be later."""

    retry_after = 1
    """Seconds after which to ask again."""


class StartError(MailerError):
    """A setting is wrong, or what it names; says what to change. What may pass is `Unavailable`."""
