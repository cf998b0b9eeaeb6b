"""Promises about large audiences, about the delay of the first request, and about the shutdown."""

import signal
import time
from datetime import datetime
from statistics import median

from tests.processes import Gateways, Mailers

from mailer.sample_data import new_mailing

AUDIENCE = 12_000
"""Clients; enqueued in several chunks."""
MAX_DELAY_IN_CALLS = 20
"""Maximum delay of a mailing's first request, as a multiple of the duration of an API call.

So the load of the machine does not matter. A mailer that polls the database instead of being
notified would take twice as long.
"""


async def test_sending_starts_while_a_large_audience_is_enqueued_and_survives_a_kill(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.02)
    settings = gateway.settings | {"gateway_concurrency": "50", "gateway_timeout": "1"}
    mailer = await start_mailer(**settings, lease="3")
    await mailer.create_clients(AUDIENCE)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await gateway.until_received(100)
    await mailer.stop(signal.SIGKILL)
    claimed = await mailer.query("SELECT count(*) FROM message WHERE status = 'sending'")

    second = await start_mailer(**settings, lease="3")
    mailing = await second.finished(created["id"])

    last_chunk_at = await second.query("SELECT max(created_at) FROM message")
    assert gateway.received[0].arrived < last_chunk_at.timestamp() * 1e6  # microseconds
    assert mailing["clients_count"] == mailing["delivered_messages"] == AUDIENCE
    assert await second.query("SELECT count(DISTINCT client_id) FROM message") == AUDIENCE
    assert len(set(gateway.ids)) == AUDIENCE
    # only messages may be repeated whose results were not recorded at the kill
    assert gateway.sandbox.counts.repeats <= claimed


async def test_due_mailing_is_sent_at_once_and_a_future_one_at_its_start(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await mailer.create_clients(2)

    async def first_arrival(mailing_id: int) -> float:
        """Return when the first request of a mailing arrived, as Unix time."""
        mailing = await mailer.finished(mailing_id)
        ids = {message["id"] for message in mailing["mailing_messages"]}
        return min(request.arrived for request in gateway.received if request.id in ids) / 1e6

    due_delays, future_delays, call_durations = [], [], []
    for _ in range(3):
        called_at = time.time()
        created = await mailer.call("POST", "/mailings", new_mailing(), 201)
        answered_at = time.time()
        call_durations.append(answered_at - called_at)
        due_delays.append(await first_arrival(created["id"]) - answered_at)
    for _ in range(2):
        created = await mailer.call("POST", "/mailings", new_mailing(starts_in=1), 201)
        start = datetime.fromisoformat(created["datetime_start"]).timestamp()
        future_delays.append(await first_arrival(created["id"]) - start)

    assert min(future_delays) >= 0
    delays = due_delays + future_delays
    max_delay = MAX_DELAY_IN_CALLS * median(call_durations)
    assert median(delays) < max_delay, (due_delays, future_delays, call_durations)


async def test_shutdown_releases_messages_that_wait_for_the_rate_limit_and_leaves_none_sending(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=2)
    mailer = await start_mailer(**gateway.settings, gateway_rate="5", shutdown_grace="1")
    await mailer.create_clients(60)
    await mailer.call("POST", "/mailings", new_mailing(), 201)
    await gateway.until_received(3)

    assert await mailer.stop() == 0

    assert await mailer.query("SELECT count(*) FROM message WHERE status = 'sending'") == 0
    assert await mailer.query("SELECT count(*) FROM message WHERE status = 'scheduled'") > 0
