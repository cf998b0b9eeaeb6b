"""Answers to replies and real processes: no crash repeats an answer, and logs name no client."""

import signal

from tests.processes import Gateways, MailerProcess, Mailers, until_true

PHONE = "79990001234"
ADD_REPLY = """
    INSERT INTO reply (gateway, phone, text, received_at)
    VALUES ('default', $1, 'A secret question', now()) RETURNING id"""
COUNT_BY_STATUS = "SELECT count(*) FROM answer WHERE status = $1"
# as if more time had passed than a lease lasts
END_LEASES = """
    UPDATE answer SET lease_expires_at = now() - interval '1 second'
    WHERE status = 'sending' RETURNING id"""


async def answer(mailer: MailerProcess, text: str) -> int:
    """Add a reply, answer it, and return the answer's id."""
    reply_id = await mailer.query(ADD_REPLY, PHONE)
    created = await mailer.call("POST", f"/replies/{reply_id}/answer", {"text": text}, 201)
    return int(created["id"])


async def until_count(mailer: MailerProcess, status: str, count: int) -> None:
    """Wait until `count` answers have a status."""

    async def is_reached() -> bool:
        return bool(await mailer.query(COUNT_BY_STATUS, status) == count)

    await until_true(is_reached)


async def test_a_kill_repeats_no_answer(start_gateway: Gateways, start_mailer: Mailers) -> None:
    gateway = await start_gateway(latency=0.5)
    mailer = await start_mailer(**gateway.settings)
    ids = [await answer(mailer, f"Answer {n}") for n in range(20)]
    await gateway.until_received(10)
    await mailer.stop(signal.SIGKILL)
    second = await start_mailer(**gateway.settings)
    last = await answer(second, "The last answer")
    await until_count(second, "waiting", 0)
    assert await second.query(END_LEASES) is not None
    await until_count(second, "sending", 0)
    accepted = await second.query(COUNT_BY_STATUS, "accepted")
    assert accepted + await second.query(COUNT_BY_STATUS, "unknown") == 21
    assert sorted(gateway.ids) == sorted(set(gateway.ids))
    assert set(gateway.ids) <= {*ids, last}
    assert last in gateway.ids


async def test_logs_contain_neither_phone_nor_text(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings, log_level="debug", log_format="json")
    answer_id = await answer(mailer, "A secret answer")
    await until_count(mailer, "accepted", 1)
    event = await mailer.event("answer_recorded")
    assert (event["answer_id"], event["status"]) == (answer_id, "accepted")
    await mailer.stop()
    assert "secret" not in str(mailer.events)
    assert PHONE not in str(mailer.events)
