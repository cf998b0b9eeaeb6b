"""The tree of mailer's errors.

The web layer turns each class of errors into a status of HTTP; the layers below do not know HTTP.
"""

from collections.abc import Sequence

import msgspec


class FieldError(msgspec.Struct, frozen=True):
    """A wrong field of an input, and an error message."""

    field: str
    """Empty if the input as a whole is wrong."""
    message: str
    """What is wrong, to be read after the field's name, such as "is required"."""


class MailerError(Exception):
    """Base of all errors that mailer raises on purpose. The message is one line for users.

    Default message: the first line of the class's docstring.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").split("\n", maxsplit=1)[0])


class InvalidError(MailerError):
    """The input is invalid; `errors` names every wrong field."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))
        self.errors = tuple(errors)


class ForbiddenError(MailerError):
    """You are not allowed to do this."""


class NotFoundError(MailerError):
    """The requested object does not exist."""


class ConflictError(MailerError):
    """The request conflicts with the current state."""


class UnavailableError(MailerError):
    """Temporarily unavailable; try again later."""

    retry_after = 1
    """Seconds after which to try again."""


class StartError(MailerError):
    """A setting, or the object that it names, is wrong; the message says what to change.

    An error that may pass is an `UnavailableError` instead.
    """
