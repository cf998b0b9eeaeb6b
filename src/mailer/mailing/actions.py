"""What a user may do with a mailing, by its status.

The use cases in `service.py` refuse an action that is not allowed, and the pages show buttons only
for allowed actions. Both ask this table.
"""

from datetime import datetime
from typing import Literal

import msgspec

from mailer.errors import ConflictError
from mailer.mailing.errors import (
    MailingDraftError,
    MailingEndedError,
    MailingNotDraftError,
    MailingNotPausedError,
    MailingPausedError,
    MailingRunsError,
    NothingToRetryError,
)
from mailer.mailing.model import ENDED, Mailing
from mailer.statuses import DRAFT, MAILING_STATUSES, RETRYABLE, MailingStatus

Action = Literal[
    "launch", "start", "change", "pause", "resume", "retry", "duplicate", "test", "cancel", "delete"
]
"""`launch` makes a draft scheduled; `start` sets the start to now, and launches a draft."""

ANY_STATUS: frozenset[MailingStatus] = frozenset(MAILING_STATUSES)
NOT_ENDED = ANY_STATUS - ENDED
LAUNCHED = NOT_ENDED - {DRAFT}


class Rule(msgspec.Struct, frozen=True):
    """In which statuses, and when, an action is allowed."""

    statuses: frozenset[MailingStatus]
    is_allowed_after_end: bool = False
    """Whether the action is allowed after the mailing's `datetime_end`, too."""


RULES: dict[Action, Rule] = {
    "launch": Rule(frozenset({DRAFT}), is_allowed_after_end=True),
    "start": Rule(frozenset({DRAFT, "scheduled"})),
    "change": Rule(NOT_ENDED),
    "pause": Rule(LAUNCHED - {"paused"}),
    "resume": Rule(frozenset({"paused"})),
    "retry": Rule(ANY_STATUS - {DRAFT, "cancelled"}),
    "duplicate": Rule(ANY_STATUS, is_allowed_after_end=True),
    "test": Rule(NOT_ENDED),
    "cancel": Rule(LAUNCHED),
    "delete": Rule(ANY_STATUS, is_allowed_after_end=True),
}
"""In the order in which pages show the actions. A retry also needs a message to retry.

The end of a draft does not count: it may have passed, and is checked when the draft is launched."""

ERRORS_BY_STATUS: dict[tuple[Action, MailingStatus], type[ConflictError]] = {
    ("pause", "paused"): MailingPausedError,
    ("resume", "scheduled"): MailingNotPausedError,
    ("resume", "running"): MailingNotPausedError,
    ("start", "running"): MailingRunsError,
    ("start", "paused"): MailingRunsError,
    **{("launch", status): MailingNotDraftError for status in MAILING_STATUSES if status != DRAFT},
    **{(action, DRAFT): MailingDraftError for action in ("pause", "resume", "retry", "cancel")},
}
"""The error of an action that a status does not allow; for a pair that is not listed here, it is
`MailingEndedError`."""


def ensure_allowed(action: Action, mailing: Mailing, at: datetime) -> None:
    """Raise the error that says why a mailing does not allow an action at the moment `at`."""
    if error := _why_refused(action, mailing, at):
        raise error


def allowed_actions(mailing: Mailing, at: datetime) -> list[Action]:
    """Return the actions that a mailing allows at the moment `at`."""
    return [action for action in RULES if _why_refused(action, mailing, at) is None]


def _why_refused(action: Action, mailing: Mailing, at: datetime) -> type[ConflictError] | None:
    """Return the error of an action that is not allowed at the moment `at`; None when it is."""
    rule = RULES[action]
    has_passed = mailing.datetime_end <= at and not mailing.is_draft
    if has_passed and not rule.is_allowed_after_end:
        return MailingEndedError
    if mailing.status not in rule.statuses:
        return ERRORS_BY_STATUS.get((action, mailing.status), MailingEndedError)
    if action == "retry" and not mailing.count_of(*RETRYABLE):
        return NothingToRetryError
    return None
