"""The log of the real process: which events it contains, and that it never contains secrets."""

import re

from tests.processes import Gateways, Mailers

from mailer.sample_data import new_mailing

EVENTS = {
    *("started", "request_received", "request_answered"),
    *(
        "mailing_created",
        "mailing_started",
        "audience_enqueued",
        "mailing_changed",
        "mailing_ended",
    ),
    *("message_claimed", "message_delivered", "message_rejected", "message_retry_scheduled"),
}
"""Events that the log contains when a mailing is created, changed and sent."""


async def test_every_step_is_logged_and_no_line_contains_a_phone_text_or_token(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(malformed_rate=0.3, reject_rate=0.2)
    mailer = await start_mailer(**gateway.settings, log_level="debug", retry_base="0.1")
    await mailer.create_clients(40)
    later = await mailer.call("POST", "/mailings", new_mailing(starts_in=60), 201)
    await mailer.call("PATCH", f"/mailings/{later['id']}", {"text": "Another secret"})
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await mailer.finished(created["id"])

    assert await mailer.stop() == 0
    assert {event["event"] for event in mailer.events} >= EVENTS
    assert {event["level"] for event in mailer.events} <= {"debug", "info", "warning"}
    log = str(mailer.events)
    for secret in (created["text"], "Another secret", gateway.settings["gateway_token"]):
        assert secret not in log
    phone = r"(?<![0-9.])7916\d{7}(?![0-9])"  # but not digits of a fraction
    assert not re.search(phone, log)


async def test_at_level_info_messages_are_not_logged(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await mailer.create_clients(40)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await mailer.finished(created["id"])

    message_events = [event for event in mailer.events if event["event"].startswith("message_")]
    assert message_events == []
