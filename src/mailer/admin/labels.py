"""Labels that the pages show for the short names in the code and the database.

`gettext_noop` only marks a label for the catalogues; it is translated when a page shows it.
"""

import re
from collections.abc import Callable, Mapping

from mailer.admin.language import gettext, gettext_noop

MAILING_STATUS_LABELS = {
    "draft": gettext_noop("Draft"),
    "scheduled": gettext_noop("Scheduled"),
    "running": gettext_noop("Running"),
    "paused": gettext_noop("Paused"),
    "finished": gettext_noop("Finished"),
    "cancelled": gettext_noop("Cancelled"),
}
REASON_LABELS = {
    "timeout": gettext_noop("no answer in time"),
    "connection_lost": gettext_noop("the connection was lost before the answer"),
    "connection_failed": gettext_noop("the gateway could not be reached"),
    "bad_response": gettext_noop("the gateway's answer was not valid"),
    "lease_expired": gettext_noop("the worker that was sending it stopped"),
    "internal_error": gettext_noop("an error in mailer: see its log"),
    "attempts_exhausted": gettext_noop("no attempts left"),
    "missing_field": gettext_noop("the client lacks a field that the text has"),
    "text_too_long": gettext_noop("the text is too long with the client's fields"),
    "too_many_parts": gettext_noop("the text has more parts than the gateway takes"),
    "expired": gettext_noop("the mailing ended before it was sent"),
    "no_window": gettext_noop("the mailing ends before the sending window opens"),
    "mailing_cancelled": gettext_noop("the mailing was cancelled"),
    "client_deleted": gettext_noop("the client was deleted"),
    "filter_changed": gettext_noop("no longer in the audience"),
    "restored": gettext_noop("the database was restored"),
    "no_gateway": gettext_noop("no gateway is configured"),
    "rate_limit": gettext_noop("the rate of the gateway permits no message soon"),
    "gateway_paused": gettext_noop("a user has paused the gateway"),
    "no_credit": gettext_noop("the account at the SMS provider has no credit: top it up"),
    "bad_credentials": gettext_noop(
        "the SMS provider refuses the key or password: correct the configuration of the gateway"
    ),
    "sender_refused": gettext_noop(
        "the SMS provider does not allow the sender: register it, or use another one"
    ),
    "account_blocked": gettext_noop("the SMS provider has blocked the account: ask its support"),
    "opted_out": gettext_noop("the client has opted out"),
    "contact_cap": gettext_noop("the client had reached the contact cap"),
    "partly_accepted": gettext_noop("the gateway accepted only some parts of the text"),
    "repeated_too_soon": gettext_noop("the gateway calls it a repeat of an earlier request"),
    "no_receipt": gettext_noop("no receipt came in time"),
    "not_delivered": gettext_noop("not delivered, according to the receipt"),
    "validity_expired": gettext_noop("the phone could not be reached in time"),
}
"""Why a message was not delivered, why its last attempt failed, or why a mailing is held."""
RECEIPT_LABELS = {
    "delivered": gettext_noop("delivered"),
    "sent": gettext_noop("on its way"),
    "failed": gettext_noop("undelivered"),
    "expired": gettext_noop("the phone could not be reached in time"),
    "unknown": gettext_noop("the provider does not know whether it was delivered"),
}
"""What a receipt says."""
ANSWER_REASON_LABELS = {
    "http": gettext_noop("the gateway answered {}"),
    "proxy": gettext_noop("the proxy before the gateway answered {}"),
    "rejected": gettext_noop("the gateway rejected it with {}"),
    "code": gettext_noop("the gateway answered with the code {}"),
    "not_delivered": gettext_noop("not delivered, with the code {} in the receipt"),
}
"""Reasons that contain an HTTP status or a code of the gateway or its proxy, such as `http_503`.
`{}` is its place."""
GATEWAY_STATE_LABELS = {
    "up": gettext_noop("In use"),
    "paused": gettext_noop("Paused"),
    "out": gettext_noop("Out"),
}
BREAKER_LABELS = {
    "closed": gettext_noop("closed"),
    "open": gettext_noop("open"),
    "half_open": gettext_noop("half-open"),
}
SCOPE_LABELS = {
    "read": gettext_noop("Read clients, mailings and messages"),
    "write": gettext_noop("Also create and change clients and mailings"),
    "admin": gettext_noop("Full access to the API"),
}
"""What an API key allows."""
ACTOR_LABELS = {
    "key": gettext_noop("API key"),
    "user": gettext_noop("User"),
    "command": gettext_noop("Command line"),
    "anonymous": gettext_noop("Anonymous"),
    "system": gettext_noop("mailer itself"),
}
"""Who made a change in the audit log."""
TARGET_LABELS = {
    "mailing": gettext_noop("Mailing"),
    "client": gettext_noop("Client"),
    "directory": gettext_noop("Clients"),
    "list": gettext_noop("List of clients"),
    "opt_out": gettext_noop("Opt-outs"),
    "key": gettext_noop("API key"),
    "user": gettext_noop("User"),
    "database": gettext_noop("Database"),
    "gateway": gettext_noop("Gateway"),
    "webhook": gettext_noop("Webhook"),
    "reply": gettext_noop("Reply"),
}
"""What was changed in the audit log; `directory` is several clients at once."""
ACTION_LABELS = {
    "mailing_created": gettext_noop("Mailing created"),
    "mailing_changed": gettext_noop("Mailing changed"),
    "mailing_paused": gettext_noop("Mailing paused"),
    "mailing_launched": gettext_noop("Mailing launched"),
    "mailing_resumed": gettext_noop("Mailing resumed"),
    "mailing_cancelled": gettext_noop("Mailing cancelled"),
    "mailing_retried": gettext_noop("Mailing retried"),
    "mailing_deleted": gettext_noop("Mailing deleted"),
    "mailing_tested": gettext_noop("Test of a mailing sent"),
    "client_created": gettext_noop("Client created"),
    "client_changed": gettext_noop("Client changed"),
    "client_erased": gettext_noop("Client deleted"),
    "clients_imported": gettext_noop("Clients imported"),
    "clients_exported": gettext_noop("Clients exported"),
    "client_opted_out": gettext_noop("Client opted out"),
    "client_opted_in": gettext_noop("Client opted in again"),
    "list_created": gettext_noop("List created"),
    "list_deleted": gettext_noop("List deleted"),
    "list_clients_added": gettext_noop("Clients put on a list"),
    "list_clients_removed": gettext_noop("Clients taken off a list"),
    "opt_outs_imported": gettext_noop("Opt-outs imported"),
    "messages_exported": gettext_noop("Messages exported"),
    "opt_outs_exported": gettext_noop("Opt-outs exported"),
    "key_created": gettext_noop("API key created"),
    "key_revoked": gettext_noop("API key revoked"),
    "user_created": gettext_noop("User created"),
    "user_role_changed": gettext_noop("Role changed"),
    "user_name_changed": gettext_noop("Name changed"),
    "user_password_changed": gettext_noop("Password changed"),
    "user_disabled": gettext_noop("User disabled"),
    "user_enabled": gettext_noop("User enabled"),
    "gateway_tried": gettext_noop("Try now: pauses ended"),
    "gateway_paused": gettext_noop("Gateway paused"),
    "gateway_resumed": gettext_noop("Gateway resumed"),
    "gateway_tested": gettext_noop("Test message sent"),
    "unknown_released": gettext_noop("Messages with delivery unknown released"),
    "webhook_created": gettext_noop("Webhook created"),
    "webhook_changed": gettext_noop("Webhook changed"),
    "webhook_deleted": gettext_noop("Webhook deleted"),
    "webhook_secret_rotated": gettext_noop("New secret of a webhook"),
    "webhook_tested": gettext_noop("Test event sent"),
    "webhook_redelivered": gettext_noop("Events delivered again"),
    "webhook_disabled": gettext_noop("Webhook disabled because it fails"),
    "reply_answered": gettext_noop("Reply answered"),
    "signed_in": gettext_noop("Signed in"),
    "sign_in_failed": gettext_noop("Sign-in failed"),
    "signed_out": gettext_noop("Signed out"),
    "notices_changed": gettext_noop("Notices by mail changed"),
    "notices_tested": gettext_noop("Test mail sent"),
    "sessions_ended": gettext_noop("Sessions ended"),
    "sending_resumed": gettext_noop("Sending allowed after a restore"),
}
"""Actions in the audit log."""
FIELD_LABELS = {
    "name": gettext_noop("Name"),
    "scope": gettext_noop("Scope"),
    "role": gettext_noop("Role"),
    "expires_at": gettext_noop("Expires"),
    "status": gettext_noop("Status"),
    "labels": gettext_noop("Labels"),
    "text": gettext_noop("Text"),
    "client_filter": gettext_noop("Audience"),
    "datetime_start": gettext_noop("Start"),
    "datetime_end": gettext_noop("End"),
    "send_interval_time_start": gettext_noop("Window opens"),
    "send_interval_time_end": gettext_noop("Window closes"),
    "on_unknown": gettext_noop("If the gateway does not confirm"),
    "purpose": gettext_noop("Purpose"),
    "priority": gettext_noop("Priority"),
    "rate": gettext_noop("Messages a second"),
    "gateway": gettext_noop("Gateway"),
    "sender": gettext_noop("Sender"),
    "phone": gettext_noop("Phone"),
    "phones": gettext_noop("Phones"),
    "operator_code": gettext_noop("Operator code"),
    "tag": gettext_noop("Tag"),
    "time_zone": gettext_noop("Time zone"),
    "filter": gettext_noop("Filtered by"),
    # numbers of clients in an import
    "created": gettext_noop("created"),
    "updated": gettext_noop("updated"),
    "unchanged": gettext_noop("unchanged"),
    "rejected": gettext_noop("rejected"),
    # of a list of clients
    "list": gettext_noop("List"),
    "added": gettext_noop("put on the list"),
    "removed": gettext_noop("taken off the list"),
    "clients_count": gettext_noop("Clients"),
    "sessions": gettext_noop("Sessions"),
    "held_since": gettext_noop("Held since"),
    "url": gettext_noop("URL"),
    "events": gettext_noop("Events"),
    "enabled": gettext_noop("Enabled"),
    "has_mail": gettext_noop("Mail address is set"),
    "notices": gettext_noop("Notices"),
    "disabled_reason": gettext_noop("Disabled because"),
    "deliveries": gettext_noop("Deliveries"),
}
"""Fields in the audit log, in the order in which the page shows them."""
EVENT_LABELS = {
    "mailing.started": gettext_noop("A mailing has started."),
    "mailing.finished": gettext_noop(
        "A mailing has nothing left to send: it is finished or cancelled."
    ),
    "mailing.held": gettext_noop("A running mailing waits for its gateways."),
    "messages.finished": gettext_noop(
        "Messages have got their final status, up to 500 in one event."
    ),
    "client.opted_out": gettext_noop("A client does not want marketing messages any more."),
    "reply.received": gettext_noop("A client has replied."),
    "gateway.down": gettext_noop("A gateway is not used any more: it fails or is paused."),
    "gateway.up": gettext_noop("A gateway is used again."),
}
"""Events of webhooks."""
DELIVERY_STATUS_LABELS = {
    "waiting": gettext_noop("waiting"),
    "delivered": gettext_noop("received"),
    "failed": gettext_noop("failed"),
}
DELIVERY_ERROR_LABELS = {
    "timeout": gettext_noop("no answer in time"),
    "connection_failed": gettext_noop("could not be reached"),
    "connection_lost": gettext_noop("the connection was lost before the answer"),
    "bad_response": gettext_noop("the answer is not valid HTTP"),
    "bad_certificate": gettext_noop("the certificate is not valid for this host"),
    "tls_failed": gettext_noop("no secure connection"),
    "private_address": gettext_noop("the address is not public"),
    "unknown_host": gettext_noop("the host has no address"),
    "redirect": gettext_noop("a redirect, which is not followed: change the URL"),
    "expired": gettext_noop("not delivered within three days"),
    "dropped": gettext_noop("dropped: too many were waiting"),
}
"""Why a delivery to a webhook failed; a status of HTTP is not among them."""
ANSWERED_WITH = gettext_noop("answered with {}")
"""A status of HTTP with which an endpoint refused an event. `{}` is its place."""
NOTICE_LABELS = {
    "mailing_unreached": gettext_noop("A mailing has ended and did not reach everybody"),
    "mailing_held": gettext_noop("A running mailing is held"),
    "gateway_trouble": gettext_noop("A gateway is in trouble"),
}
NOTICE_HINTS = {
    "mailing_unreached": gettext_noop(
        "How many clients were not reached, and why. Mailings that end within two minutes are in"
        " one mail."
    ),
    "mailing_held": gettext_noop(
        "Why it does not send, when that has lasted for five minutes. At most one mail an hour for"
        " each mailing."
    ),
    "gateway_trouble": gettext_noop(
        "When it has been out for five minutes, and when it works again. At most once an hour for"
        " each gateway. A pause by a user is not reported."
    ),
}
"""The notices by mail that a user can choose."""
MAIL_ANSWERED = gettext_noop("the mail server answered with the code {}")
"""A reply code with which a mail server refused an address. `{}` is its place."""
PURPOSE_LABELS = {
    "marketing": gettext_noop("Marketing"),
    "service": gettext_noop("Service"),
}
"""The choice of a mailing for clients who have opted out."""
PRIORITY_LABELS = {
    "low": gettext_noop("Low"),
    "normal": gettext_noop("Normal"),
    "high": gettext_noop("High"),
}
"""The share of a mailing in the capacity."""
MAILING_ORDER_LABELS = {
    "newest": gettext_noop("Newest first"),
    "start": gettext_noop("Latest start first"),
    "end": gettext_noop("Latest end first"),
    "audience": gettext_noop("Largest audience first"),
}
"""The orders of the list of mailings."""
OPT_OUT_SOURCE_LABELS = {
    "reply": gettext_noop("reply of the client"),
    "gateway": gettext_noop("answer of the gateway"),
    "page": gettext_noop("a user"),
    "api": gettext_noop("API"),
    "import": gettext_noop("imported file"),
}
"""How an opt-out came."""
ANSWER_STATUS_LABELS = {
    "waiting": gettext_noop("waiting"),
    "sending": gettext_noop("being sent"),
    "accepted": gettext_noop("accepted"),
    "failed": gettext_noop("not sent"),
    "unknown": gettext_noop("delivery unknown"),
}
"""The status of an answer to a reply."""
REPLY_ACTION_LABELS = {
    "opted_out": gettext_noop("opted out"),
    "opted_in": gettext_noop("opted in"),
}
"""What a reply with a stop or start word has done."""
ON_UNKNOWN_LABELS = {"retry": gettext_noop("send again"), "hold": gettext_noop("do not send again")}
"""The choice of a mailing for messages whose delivery is unknown."""
ROLE_LABELS = {
    "viewer": gettext_noop("Viewer"),
    "operator": gettext_noop("Operator"),
    "admin": gettext_noop("Admin"),
}
BROWSERS = {
    "Edg": "Edge",
    "OPR/": "Opera",
    "YaBrowser/": "Yandex",
    "Firefox/": "Firefox",
    "Chrome/": "Chrome",
    "Safari/": "Safari",
}
"""Browsers by a part of their User-Agent. The first match counts: the User-Agent of Edge contains
`Chrome/` and `Safari/`, too."""
OPERATING_SYSTEMS = {
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Android": "Android",
    "Windows": "Windows",
    "Mac OS": "macOS",
    "CrOS": "ChromeOS",
    "Linux": "Linux",
}
"""Operating systems by a part of the User-Agent; the first match counts."""
_ANSWER_REASON = re.compile(r"(http|proxy|rejected|code|not_delivered)_([0-9A-Za-z_.-]+)")


def reason_label(reason: str) -> str:
    """Return the label of a reason; a reason without a label is returned unchanged."""
    if match := _ANSWER_REASON.fullmatch(reason):
        kind, status = match.groups()
        return gettext(ANSWER_REASON_LABELS[kind]).format(status)
    return gettext(REASON_LABELS[reason]) if reason in REASON_LABELS else reason


def delivery_error_label(error: str) -> str:
    """Return the label of the error of a delivery to a webhook."""
    if match := re.fullmatch(r"http_(\d+)", error):
        return gettext(ANSWERED_WITH).format(match[1])
    return gettext(DELIVERY_ERROR_LABELS[error]) if error in DELIVERY_ERROR_LABELS else error


def mail_failure_label(failure: str) -> str:
    """Return why a mail with notices was not sent."""
    if match := re.fullmatch(r"smtp_(\d+)", failure):
        return gettext(MAIL_ANSWERED).format(match[1])
    return failure


def label_lookup(labels: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function from a name to its label; a name without a label is returned unchanged."""
    return lambda name: gettext(labels[name]) if name in labels else name


def browser_name(user_agent: str) -> str:
    """Return the browser and the operating system of a User-Agent, such as `Firefox, Linux`.

    A User-Agent with neither of them is returned unchanged.
    """
    names = [
        next((name for part, name in names_by_part.items() if part in user_agent), None)
        for names_by_part in (BROWSERS, OPERATING_SYSTEMS)
    ]
    return ", ".join(name for name in names if name) or user_agent
