"""What the log of the real process tells, and what it never does."""

import re

from tests.acceptance.test_main_job import a_mailing, add_clients
from tests.processes import Gateways, Mailers

STAGES = {
    *("started", "request_received", "request_answered"),
    *("mailing_created", "mailing_started", "audience_taken", "mailing_changed", "mailing_ended"),
    *("message_claimed", "message_sent", "message_refused", "message_tried_again"),
}


async def test_every_stage_has_its_event_and_no_line_a_phone_text_or_token(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(malformed_rate=0.3, reject_rate=0.2)
    mailer = await start_mailer(**gateway.settings, log_level="debug", retry_base="0.1")
    await add_clients(mailer, 40)
    later = await mailer.call("POST", "/mailings", a_mailing(starts_in=60), 201)
    await mailer.call("PATCH", f"/mailings/{later['id']}", {"text": "Another secret"})
    created = await mailer.call("POST", "/mailings", a_mailing(), 201)
    await mailer.finished(created["id"])

    assert await mailer.stop() == 0
    assert {event["event"] for event in mailer.events} >= STAGES
    assert {event["level"] for event in mailer.events} <= {"debug", "info", "warning"}
    lines = str(mailer.events)
    assert not any(secret in lines for secret in (created["text"], "Another secret", "secret"))
    assert not re.search(r"(?<![0-9.])7916\d{7}(?![0-9])", lines)  # nor a fraction's digits


async def test_at_info_a_message_costs_no_line(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await add_clients(mailer, 40)
    created = await mailer.call("POST", "/mailings", a_mailing(), 201)
    await mailer.finished(created["id"])

    told = [event for event in mailer.events if event["event"].startswith("message_")]
    assert told == []
