"""The words that pages use for what the code has short names for."""

import re
from collections.abc import Callable, Mapping

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
    "attempts_exhausted": marked("no attempts left"),
    "expired": marked("the end came first"),
    "no_window": marked("its hours open only after the end"),
    "mailing_cancelled": marked("the mailing was cancelled"),
    "client_deleted": marked("the client was deleted"),
    "filter_changed": marked("no longer in the audience"),
    "restored": marked("the database was restored"),
    "no_gateway": marked("no gateway is configured"),
}
SCOPES = {
    "read": marked("Look at clients, mailings and messages"),
    "write": marked("Change clients and mailings"),
    "admin": marked("Everything the API does"),
}
ACTORS = {
    "key": marked("Key"),
    "account": marked("Account"),
    "command": marked("Command line"),
    "anybody": marked("Anybody"),
}
THINGS = {
    "mailing": marked("Mailing"),
    "client": marked("Client"),
    "directory": marked("Directory of clients"),
    "key": marked("Key"),
    "account": marked("Account"),
    "database": marked("Database"),
    "gateway": marked("Gateway"),
}
ACTIONS = {
    "mailing_created": marked("Mailing created"),
    "mailing_changed": marked("Mailing changed"),
    "mailing_paused": marked("Mailing paused"),
    "mailing_resumed": marked("Mailing resumed"),
    "mailing_cancelled": marked("Mailing cancelled"),
    "mailing_retried": marked("Mailing sent again"),
    "mailing_deleted": marked("Mailing deleted"),
    "client_added": marked("Client added"),
    "client_changed": marked("Client changed"),
    "client_erased": marked("Client deleted"),
    "clients_imported": marked("Clients imported"),
    "clients_exported": marked("Clients exported"),
    "key_made": marked("Key made"),
    "key_revoked": marked("Key revoked"),
    "account_made": marked("Account made"),
    "account_role_changed": marked("Role changed"),
    "account_name_changed": marked("Name changed"),
    "account_password_changed": marked("Password changed"),
    "account_disabled": marked("Account disabled"),
    "account_enabled": marked("Account enabled"),
    "gateway_tried": marked("Gateway retry requested"),
    "signed_in": marked("Signed in"),
    "sign_in_failed": marked("Sign-in failed"),
    "signed_out": marked("Signed out"),
    "sessions_ended": marked("Sessions ended"),
    "sending_resumed": marked("Sending resumed after a restore"),
}
"""What was done, by the names that the audit log has for it."""
FACTS = {
    "name": marked("Name"),
    "scope": marked("Rights"),
    "role": marked("Role"),
    "expires_at": marked("Expires"),
    "status": marked("Status"),
    "text": marked("Text"),
    "client_filter": marked("Audience"),
    "datetime_start": marked("Start"),
    "datetime_end": marked("End"),
    "send_interval_time_start": marked("Opens"),
    "send_interval_time_end": marked("Closes"),
    "on_unknown": marked("If in doubt"),
    "phone": marked("Phone"),
    "operator_code": marked("Operator code"),
    "tag": marked("Tag"),
    "time_zone": marked("Time zone"),
    "filter": marked("Filtered by"),
    "created": marked("created"),
    "updated": marked("updated"),
    "unchanged": marked("unchanged"),
    "rejected": marked("rejected"),
    "sessions": marked("Sessions"),
    "held_since": marked("Held since"),
}
"""Fields that the audit log tells of, in the order in which they are read."""
ON_UNKNOWN = {"retry": marked("send again"), "hold": marked("do not send again")}
ANSWERS = {
    "http": marked("the gateway answered {}"),
    "rejected": marked("the gateway refused it with {}"),
}
ROLES = {
    "viewer": marked("Viewer"),
    "operator": marked("Operator"),
    "admin": marked("Admin"),
}
BROWSERS = {
    "Edg": "Edge",
    "OPR/": "Opera",
    "YaBrowser/": "Yandex",
    "Firefox/": "Firefox",
    "Chrome/": "Chrome",
    "Safari/": "Safari",
}
"""Names by what browsers say that they are; each also says that it is some of those after it."""
MACHINES = {
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Android": "Android",
    "Windows": "Windows",
    "Mac OS": "macOS",
    "CrOS": "ChromeOS",
    "Linux": "Linux",
}
_ANSWER = re.compile(r"(http|rejected)_(\d{3})")


def reason(name: str) -> str:
    """Return why something is so, in words; a reason that nobody knows stands for itself."""
    if known := _ANSWER.fullmatch(name):
        return gettext(ANSWERS[known[1]]).format(known[2])
    return gettext(REASONS[name]) if name in REASONS else name


def known(names: Mapping[str, str]) -> Callable[[str], str]:
    """Return what says the words for a name; one without stands for itself."""
    return lambda name: gettext(names[name]) if name in names else name


def browser(agent: str) -> str:
    """Return which browser calls itself so, for people to tell theirs by."""
    known = [
        next((name for mark, name in names.items() if mark in agent), None)
        for names in (BROWSERS, MACHINES)
    ]
    return ", ".join(name for name in known if name) or agent
