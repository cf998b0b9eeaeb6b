"""The log of the real process: its events, and what it never contains."""

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
    lines = str(mailer.events)
    assert not any(secret in lines for secret in (created["text"], "Another secret", "secret"))
    # a phone, but not the digits of a fraction
    assert not re.search(r"(?<![0-9.])7916\d{7}(?![0-9])", lines)


async def test_at_level_info_messages_are_not_logged(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await mailer.create_clients(40)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await mailer.finished(created["id"])

    events = [event for event in mailer.events if event["event"].startswith("message_")]
    assert events == []
