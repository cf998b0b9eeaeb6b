"""One tree of errors; the web edge turns its families into problems, nothing below knows HTTP."""

from collections.abc import Sequence

import msgspec


class FieldError(msgspec.Struct, frozen=True):
    """What is wrong with one field of what was given."""

    field: str
    message: str


class MailerError(Exception):
    """Whatever mailer refuses or cannot do; its text is one line for a person."""


class InvalidError(MailerError):
    """What was given breaks a rule; names every wrong field."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))
        self.errors = tuple(errors)


class NotFoundError(MailerError):
    """What was asked for does not exist."""


class ConflictError(MailerError):
    """The request clashes with the present state."""


class StartError(MailerError):
    """mailer cannot start here; says what to change."""
