"""The actions that a mailing allows in each status: one table for the service and the pages."""

from datetime import datetime
from typing import Literal

import msgspec

from mailer.errors import ConflictError
from mailer.mailing.model import (
    ENDED,
    Mailing,
    MailingEndedError,
    MailingNotPausedError,
    MailingPausedError,
    NothingToRetryError,
)
from mailer.statuses import MAILING_STATUSES, RETRYABLE, MailingStatus

Action = Literal["change", "pause", "resume", "retry", "duplicate", "cancel", "delete"]

ALL: frozenset[MailingStatus] = frozenset(MAILING_STATUSES)
NOT_ENDED = ALL - ENDED


class Rule(msgspec.Struct, frozen=True):
    """The statuses and times in which an action is allowed."""

    statuses: frozenset[MailingStatus]
    is_allowed_after_end: bool = False
    """Whether it is allowed after `datetime_end`, too."""


RULES: dict[Action, Rule] = {
    "change": Rule(NOT_ENDED),
    "pause": Rule(NOT_ENDED - {"paused"}),
    "resume": Rule(frozenset({"paused"})),
    "retry": Rule(ALL - {"cancelled"}),
    "duplicate": Rule(ALL, is_allowed_after_end=True),
    "cancel": Rule(NOT_ENDED),
    "delete": Rule(ALL, is_allowed_after_end=True),
}
"""In the order in which pages show them."""
ERRORS: dict[tuple[Action, MailingStatus], type[ConflictError]] = {
    ("pause", "paused"): MailingPausedError,
    ("resume", "scheduled"): MailingNotPausedError,
    ("resume", "running"): MailingNotPausedError,
}
"""The errors of actions that a status does not allow; `MailingEndedError` for other statuses."""


def ensure_allowed(action: Action, mailing: Mailing, at: datetime) -> None:
    """Raise the error that says why a mailing does not allow an action at the moment `at`."""
    if error := _find_error(action, mailing, at):
        raise error


def allowed_actions(mailing: Mailing, at: datetime) -> list[Action]:
    """Return the actions that a mailing allows at the moment `at`."""
    return [action for action in RULES if _find_error(action, mailing, at) is None]


def _find_error(action: Action, mailing: Mailing, at: datetime) -> type[ConflictError] | None:
    rule = RULES[action]
    if mailing.datetime_end <= at and not rule.is_allowed_after_end:
        return MailingEndedError
    if mailing.status not in rule.statuses:
        return ERRORS.get((action, mailing.status), MailingEndedError)
    if action == "retry" and not mailing.count_of(*RETRYABLE):
        return NothingToRetryError
    return None
