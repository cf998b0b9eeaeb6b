"""Errors of mailings. The first line of a docstring is the text that users see."""

from mailer.errors import ConflictError, NotFoundError, UnavailableError


class MailingNotFoundError(NotFoundError):
    """There is no such mailing."""


class MailingEndedError(ConflictError):
    """A mailing that has ended cannot be changed."""


class MailingStartedError(ConflictError):
    """The start of a mailing that has started cannot be changed."""


class PurposeFixedError(ConflictError):
    """The purpose of a mailing that has started cannot be changed."""


class TooManyTextsError(ConflictError):
    """The text of this mailing was changed too often; create a new mailing."""


class MailingDraftError(ConflictError):
    """The mailing is a draft: launch it first, or delete it."""


class MailingNotDraftError(ConflictError):
    """Only a draft can be launched."""


class ApprovalRequiredError(ConflictError):
    """So many clients need two users: one saves a draft, and another one launches it."""


class MailingChangedError(ConflictError):
    """The mailing was changed meanwhile. Read it again before you send it."""


class MailingRunsError(ConflictError):
    """Only a draft or a scheduled mailing can be started now."""


class MailingPausedError(ConflictError):
    """The mailing is paused already."""


class MailingNotPausedError(ConflictError):
    """Only a mailing that is paused can be resumed."""


class NothingToRetryError(ConflictError):
    """No message of the mailing is undelivered or unknown, so that there is nothing to retry."""


class StopTimeoutError(UnavailableError):
    """The change is saved, but a worker may still send. To check, repeat the action in a moment.

    Raised when the pause, cancel or deletion is committed, but some worker has not confirmed in
    time that it has stopped sending for the mailing. A repeated call waits for that again.
    """
