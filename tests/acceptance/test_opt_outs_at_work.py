"""Opt-outs while two processes send: no marketing request to an opted-out phone starts later."""

import asyncio
import random
import time

import pytest
from tests.processes import Gateways, LoopLag, MailerProcess, Mailers, until_true

from mailer.sample_data import new_mailing

CLIENTS = 200
ACTS_WITHIN = 1.0
"""Seconds after an opt-out in which a message may still be written: the promise."""


async def phones_of(mailer: MailerProcess) -> list[str]:
    """Return the phones of all clients."""
    query = "SELECT array_agg(phone) FROM client WHERE deleted_at IS NULL"
    phones: list[str] = await mailer.query(query)
    return phones


async def are_all_final(mailer: MailerProcess) -> bool:
    open_messages = "SELECT count(*) FROM message WHERE status IN ('scheduled', 'sending')"
    return not await mailer.query(open_messages)


async def opt_out(mailer: MailerProcess, phone: str, opted_out: dict[int, float]) -> None:
    """Opt a phone out, and remember when the answer came."""
    await mailer.call("POST", "/opt-outs", {"phone": phone}, 201)
    opted_out[int(phone)] = time.monotonic()


@pytest.mark.parametrize("seed", range(2))
async def test_no_request_starts_a_second_after_an_opt_out(
    start_gateway: Gateways, start_mailer: Mailers, lag: LoopLag, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311  # examples of a test
    gateway = await start_gateway(latency=0.2, jitter=1.0, error_rate=0.05, seed=seed)
    settings = gateway.settings | {"gateway_concurrency": "10", "retry_base": "0.1"}
    first, second = await asyncio.gather(*(start_mailer(**settings) for _ in range(2)))
    await first.create_clients(CLIENTS)
    phones = chance.sample(await phones_of(first), CLIENTS)
    opted_out: dict[int, float] = {}
    for phone in phones[:20]:
        await opt_out(first, phone, opted_out)
    for _ in range(2):
        await first.call("POST", "/mailings", new_mailing(), 201)
    for phone in phones[20:100]:
        await opt_out(chance.choice([first, second]), phone, opted_out)
        await asyncio.sleep(chance.random() * 0.03)

    await until_true(lambda: are_all_final(first))

    allowed = ACTS_WITHIN + lag.longest
    late = [
        request.monotonic - opted_out[request.message.phone]
        for request in gateway.received
        if request.message is not None and request.message.phone in opted_out
        if request.monotonic > opted_out[request.message.phone] + allowed
    ]
    assert late == []
    cancelled = "SELECT count(*) FROM message WHERE status = 'cancelled' AND reason = 'opted_out'"
    assert await first.query(cancelled) >= 2 * 20
    sent = "SELECT count(*) FROM message WHERE status = 'delivered'"
    assert await first.query(sent) >= 2 * (CLIENTS - 100)


async def test_a_service_mailing_reaches_clients_who_have_opted_out(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await mailer.create_clients(3)
    phones = await phones_of(mailer)
    await mailer.call("POST", "/opt-outs", {"phone": phones[0]}, 201)
    marketing = await mailer.call("POST", "/mailings", new_mailing(), 201)
    service = await mailer.call("POST", "/mailings", new_mailing(purpose="service"), 201)
    assert (await mailer.finished(marketing["id"]))["cancelled_messages"] == 1
    assert (await mailer.finished(service["id"]))["delivered_messages"] == 3


async def test_a_client_who_opts_in_gets_the_next_mailing(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await mailer.create_clients(1)
    [phone] = await phones_of(mailer)
    await mailer.call("POST", "/opt-outs", {"phone": phone}, 201)
    first = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await mailer.finished(first["id"])
    await mailer.call("POST", "/opt-outs/delete", {"phone": phone}, 204)
    second = await mailer.call("POST", "/mailings", new_mailing(), 201)
    assert (await mailer.finished(second["id"]))["delivered_messages"] == 1
    assert len(gateway.received) == 1
