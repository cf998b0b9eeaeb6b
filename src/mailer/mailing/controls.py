"""What people may do with a mailing at a moment: what the service does not refuse then."""

from datetime import datetime
from typing import Literal

from mailer.db.schema import OUTCOMES
from mailer.mailing.model import ENDED, Mailing

Control = Literal["edit", "pause", "resume", "retry", "cancel", "duplicate", "delete"]


def controls(mailing: Mailing, at: datetime) -> list[Control]:
    """Return what may be done with a mailing at a moment, the usual first."""
    is_over = mailing.datetime_end <= at
    may: list[Control] = []
    if mailing.status not in ENDED and not is_over:
        may += ["edit", "resume" if mailing.status == "paused" else "pause"]
    given_up = mailing.undelivered_messages + mailing.unknown_messages
    if mailing.status != "cancelled" and not is_over and given_up:
        may.append("retry")
    may.append("duplicate")
    if mailing.status not in ENDED and not is_over:
        may.append("cancel")
    return [*may, "delete"]


def waiting(mailing: Mailing) -> int:
    """Return how many are still to be sent, also those whose messages are still to be made."""
    ended = sum(getattr(mailing, f"{outcome}_messages") for outcome in OUTCOMES)
    left: int = mailing.clients_count - mailing.sending_messages - ended
    return max(0, left)
