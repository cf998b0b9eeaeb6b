"""The words that pages use for what the code has short names for."""

import re

from mailer.admin.language import gettext, marked

MAILING_STATUSES = {
    "scheduled": marked("Scheduled"),
    "running": marked("Running"),
    "paused": marked("Paused"),
    "finished": marked("Finished"),
    "cancelled": marked("Cancelled"),
}
MESSAGE_STATUSES = {
    "scheduled": marked("waiting"),
    "sending": marked("being sent"),
    "delivered": marked("delivered"),
    "undelivered": marked("undelivered"),
    "unknown": marked("in doubt"),
    "cancelled": marked("cancelled"),
}
REASONS = {
    "timeout": marked("no answer in time"),
    "connection_lost": marked("the connection broke before the answer"),
    "connection_failed": marked("the gateway could not be reached"),
    "bad_response": marked("the gateway's answer made no sense"),
    "lease_expired": marked("the process that sent it stopped"),
    "internal_error": marked("a fault in mailer: see its log"),
    "attempts_exhausted": marked("given up after every attempt"),
    "expired": marked("the end came first"),
    "no_window": marked("its hours open only after the end"),
    "mailing_cancelled": marked("the mailing was cancelled"),
    "client_deleted": marked("the client was deleted"),
    "filter_changed": marked("no longer in the audience"),
}
ANSWERS = {
    "http": marked("the gateway answered {}"),
    "rejected": marked("the gateway refused it with {}"),
}
_ANSWER = re.compile(r"(http|rejected)_(\d{3})")


def reason(name: str) -> str:
    """Return why something is so, in words; a reason that nobody knows stands for itself."""
    if known := _ANSWER.fullmatch(name):
        return gettext(ANSWERS[known[1]]).format(known[2])
    return gettext(REASONS[name]) if name in REASONS else name
