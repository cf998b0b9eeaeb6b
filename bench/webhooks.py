"""Measure what webhooks cost the sending of a message: without an endpoint, and with one.

One mailer process sends mailings through a sink in turns: with the triggers of webhooks disabled in
the database, with them but without a webhook, and with a webhook that gets every event. Its
receiver is another sink. The order changes from round to round.

For each message the benchmark compares the processor time of mailer and of its PostgreSQL, until
the last event is delivered, as a median over the rounds. A busy machine changes it little. Takes
about three minutes.
"""

import argparse
import asyncio
import sys
from statistics import median

import uvloop

import harness
from against_before import CONCURRENCY, Cost, print_cost

MAX_WITHOUT, MAX_WITH = 1.02, 1.05
EVENTS = ["mailing.started", "mailing.finished", "mailing.held", "messages.finished"]
TRIGGERS = (
    ("message", "add_events_of_inserted_messages"),
    ("message", "add_events_of_updated_messages"),
    ("mailing", "add_event_of_started_mailing"),
    ("mailing", "add_event_of_finished_mailing"),
)
MODES = ("disabled", "without", "with")
"""Triggers disabled; no webhook; one webhook."""
WAL_BYTES = "SELECT (pg_current_wal_lsn() - '0/0')::bigint"
COUNT_WAITING = "SELECT count(*) FROM webhook_delivery WHERE status = 'waiting'"
COUNT_EVENTS = "SELECT count(*) FROM webhook_event"


async def set_mode(mailer: harness.Mailer, mode: str, webhook_id: int) -> None:
    """Disable or enable the triggers and the webhook."""
    verb = "DISABLE" if mode == "disabled" else "ENABLE"
    for table, trigger in TRIGGERS:
        await mailer.database.execute(f"ALTER TABLE {table} {verb} TRIGGER {trigger}")
    await mailer.call("PATCH", f"/webhooks/{webhook_id}", {"enabled": mode == "with"})


async def wait_until_delivered(mailer: harness.Mailer) -> None:
    """Wait until no event waits."""
    while await mailer.database.fetchval(COUNT_WAITING):  # noqa: ASYNC110  # in another process
        await asyncio.sleep(harness.POLL_INTERVAL)


async def measure(
    mailer: harness.Mailer, sink: harness.SinkProcess, messages: int
) -> tuple[Cost, int]:
    """Send one mailing to all clients; return the cost of a message, and the number of events."""
    await mailer.checkpoint()
    events = await mailer.database.fetchval(COUNT_EVENTS)
    postgres = harness.postmaster_of(mailer.pid)
    mailer_before = harness.exact_cpu_seconds(mailer.pid)
    database_before = harness.server_cpu_seconds(postgres)
    wal_before = await mailer.database.fetchval(WAL_BYTES)
    report = await harness.send_to_all(mailer, sink, messages)
    await wait_until_delivered(mailer)
    cost = Cost(
        mailer=(harness.exact_cpu_seconds(mailer.pid) - mailer_before) / messages * 1e6,
        database=(harness.server_cpu_seconds(postgres) - database_before) / messages * 1e6,
        wal=(await mailer.database.fetchval(WAL_BYTES) - wal_before) / messages,
        rate=report.rate,
    )
    return cost, await mailer.database.fetchval(COUNT_EVENTS) - events


def check_limits(costs: dict[str, list[Cost]]) -> int:
    """Print the median ratios and the limits; return the exit status."""
    verdict = harness.Verdict()
    for mode, limit in (("without", MAX_WITHOUT), ("with", MAX_WITH)):
        pairs = list(zip(costs["disabled"], costs[mode], strict=True))
        ratio = median(cost.both / base.both for base, cost in pairs)
        rate = median(cost.rate / base.rate for base, cost in pairs)
        figure = f"{mode} a webhook: processor time {ratio:.3f} (rate {rate:.3f})"
        verdict.check(figure, limit=f"at most {limit}", holds=ratio <= limit)
    return verdict.status


async def main(messages: int, rounds: int) -> int:
    """Send in each mode in turns and print the costs; return the exit status."""
    costs: dict[str, list[Cost]] = {mode: [] for mode in MODES}
    async with (
        harness.sink() as sink,
        harness.sink() as receiver,
        harness.serve(
            sink.url, gateway_concurrency=CONCURRENCY, webhook_private_addresses="true"
        ) as mailer,
    ):
        new = {"name": "bench", "url": f"{receiver.url}1", "events": EVENTS}
        webhook_id = (await mailer.call("POST", "/webhooks", new))["id"]
        await mailer.create_clients(messages)
        await harness.send_to_all(mailer, sink, messages)  # to warm up
        await wait_until_delivered(mailer)
        for round_ in range(rounds):
            print(f"round {round_ + 1}")
            for mode in MODES[round_ % 3 :] + MODES[: round_ % 3]:
                await set_mode(mailer, mode, webhook_id)
                cost, events = await measure(mailer, sink, messages)
                costs[mode].append(cost)
                print_cost(f"{mode}, {events} events:", cost)
    return check_limits(costs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    sys.exit(uvloop.run(main(args.messages, args.rounds)))
