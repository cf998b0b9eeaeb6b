"""Many mailings are started, and their small audiences enqueued, in few statements."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import HOUR, add_clients, do, enqueue_and_replan, execute, value
from tests.statements import recorded_statements

from mailer.access.model import COMMAND_LINE
from mailer.client import segment_counts
from mailer.mailing import (
    combined_filters,
    enqueuing,
    mailing_batches,
    pending_work,
    replanning,
    service,
    small_audiences,
    starting,
    store,
)
from mailer.mailing.model import MailingChange
from mailer.mailing.skipped import SkippedMailings
from mailer.statistics.verify import find_differences

# All messages as JSON. Due times are compared by class, because those in a sending window depend on
# now(): at the start, more than an hour from now, or any other time.
MESSAGES = """
    SELECT coalesce(jsonb_agg(jsonb_build_array(
        text, client_id, operator_code, time_zone, message.status, reason,
        CASE WHEN due_at = datetime_start THEN 'start'
            WHEN due_at > now() + interval '1 hour' THEN 'later' END)
        ORDER BY text, client_id), '[]')
    FROM message JOIN mailing ON mailing.id = mailing_id"""
CLIENTS_COUNTS = "SELECT array_agg(clients_count ORDER BY id) FROM mailing"
COUNT_MESSAGES = "SELECT count(*) FROM message"
MAILINGS_PER_BATCH = mailing_batches.MAILINGS_PER_BATCH
NEWEST_PER_BATCH = mailing_batches.NEWEST_PER_BATCH
LARGE_AUDIENCE = small_audiences.MAX_SMALL_AUDIENCE + 1
"""Clients of the smallest audience that is not small."""


async def add_mailing(engine: AsyncEngine, text: str, client_filter: Any, **fields: Any) -> int:
    """Create a mailing that is due since an hour and ends in an hour; return its id."""
    values = {
        "datetime_start": datetime.now(UTC) - HOUR,
        "datetime_end": datetime.now(UTC) + HOUR,
        "text": text,
        "client_filter": client_filter,
    } | fields
    return await do(engine, lambda db: store.create(db, values, 0))


async def enqueue_small(engine: AsyncEngine, **options: Any) -> list[int]:
    """Enqueue a batch of small audiences; return the ids of their mailings."""
    chunks = await do(
        engine, lambda db: small_audiences.enqueue_small(db, SkippedMailings(), **options)
    )
    return [chunk.mailing_id for chunk in chunks]


async def test_starting_and_enqueuing_many_mailings_takes_as_many_statements_as_a_few_mailings(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, MAILINGS_PER_BATCH)
    await execute(engine, "UPDATE client SET tag = 'tag ' || id")
    statement_counts = []
    for count in (NEWEST_PER_BATCH, MAILINGS_PER_BATCH):
        for number in range(1, count + 1):
            await add_mailing(engine, "Hello", {"tags": [f"Tag {number}"]})
        with recorded_statements(engine) as statements:
            assert len(await do(engine, starting.start_due)) == count
            assert len(await enqueue_small(engine)) == count
        statement_counts.append(len(statements))

    for_few_mailings, for_many_mailings = statement_counts
    assert for_few_mailings == for_many_mailings
    total = NEWEST_PER_BATCH + MAILINGS_PER_BATCH  # one client for each mailing
    assert await value(engine, COUNT_MESSAGES) == total
    assert await value(engine, "SELECT sum(scheduled) FROM mailing_counts") == total
    assert not (await do(engine, pending_work.find_pending_work)).has_work
    assert await find_differences(engine) == []


VARIOUS_FILTERS: list[Any] = [
    None,
    "912, tag 4, tag 4, nobody",  # the same tag twice, and one that no client has
    ",,",  # empty
    "999",  # no client matches
    {"operator_codes": ["912"], "time_zones": ["Asia/Tokyo"]},
    {"tags": ["vip"], "operator_codes": ["916"]},
    {"time_zones": ["UTC", "Europe/Moscow"]},
]


async def add_various_clients(engine: AsyncEngine) -> None:
    """Create clients that differ in operator code, time zone and tag; some have no tag."""
    await add_clients(engine, 20)
    await add_clients(engine, 10, operator_code="912", time_zone="Asia/Tokyo")
    await add_clients(engine, 5, operator_code="912", time_zone="Europe/Moscow")
    await execute(
        engine,
        "UPDATE client SET tag = 'tag ' || id WHERE id % 3 <> 0",
        "UPDATE client SET tag = 'vip' WHERE id % 5 = 0",
    )


async def add_various_mailings(engine: AsyncEngine, client_filter: Any) -> int:
    """Create mailings with a filter, one for each kind of plan; return how many.

    The window is half an hour long and opens in about twelve hours.
    """
    now = datetime.now(UTC)
    hour = now.hour + 12
    window = {
        "send_interval_time_start": f"{hour % 24:02}:30",
        "send_interval_time_end": f"{(hour + 1) % 24:02}:00",
    }
    fields_by_kind: dict[str, dict[str, Any]] = {
        "due": {},
        "ends before the window": window,
        "ends after the window": {**window, "datetime_end": now + 72 * HOUR},
        "ended": {"datetime_end": now},
        "cancelled": {"status": "cancelled"},
    }
    for kind, fields in fields_by_kind.items():
        await add_mailing(engine, f"{kind}, filter {client_filter}", client_filter, **fields)
    return len(fields_by_kind)


async def test_small_audiences_enqueued_together_equal_those_enqueued_one_by_one(
    engine: AsyncEngine,
) -> None:
    await add_various_clients(engine)
    count = 0
    for client_filter in VARIOUS_FILTERS:
        count += await add_various_mailings(engine, client_filter)
    await do(engine, lambda db: starting.start_due(db, limit=count))
    await add_clients(engine, 3)  # created after the start
    erase = "UPDATE client SET deleted_at = now(), phone = NULL, tag = NULL WHERE id = 7"
    await execute(engine, erase)
    async with engine.connect() as trial:
        while await enqueuing.enqueue_chunk(trial):
            pass
        one_by_one = (await trial.exec_driver_sql(MESSAGES)).scalar_one()
        counts_one_by_one = (await trial.exec_driver_sql(CLIENTS_COUNTS)).scalar_one()
        await trial.rollback()

    assert len(await enqueue_small(engine, limit=count)) == count

    assert len(one_by_one) > 100  # enough cases to compare
    assert await value(engine, MESSAGES) == one_by_one
    assert await value(engine, CLIENTS_COUNTS) == counts_one_by_one
    assert await find_differences(engine) == []


async def test_clients_that_match_again_after_a_filter_change_are_scheduled_again(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 4)
    await add_mailing(engine, "Hello", None)
    await do(engine, starting.start_due)
    await enqueue_and_replan(engine)
    # the state after two changes of the filter: clients 3 and 4 stopped matching, and match again
    await execute(
        engine,
        "UPDATE message SET status = 'cancelled', reason = 'filter_changed' WHERE client_id > 2",
        "UPDATE message SET status = 'delivered', sent_at = now() WHERE client_id = 1",
        "UPDATE mailing SET audience_cursor = 0",
    )

    await enqueue_small(engine)

    assert await value(engine, "SELECT scheduled FROM mailing_counts") == 3
    assert await value(engine, "SELECT delivered FROM mailing_counts") == 1
    assert await find_differences(engine) == []


async def test_the_newest_mailings_come_first_then_the_longest_waiting_ones(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 1)
    now = datetime.now(UTC)
    ids = [
        await add_mailing(engine, "Hello", None, datetime_start=now - HOUR + timedelta(seconds=n))
        for n in range(2 * NEWEST_PER_BATCH + 3)
    ]
    limit = NEWEST_PER_BATCH + 2
    first_started = [*reversed(ids[-NEWEST_PER_BATCH:]), *ids[:2]]
    remaining = len(ids) - limit

    assert await do(engine, lambda db: starting.start_due(db, limit)) == first_started
    assert len(await do(engine, starting.start_due)) == remaining

    assert set(await enqueue_small(engine, limit=limit)) == set(first_started)
    assert len(await enqueue_small(engine)) == remaining


SEGMENTS = 2_000
# Rows of `segment_count` that the current transaction has read, by PostgreSQL's statistics.
SEGMENT_ROW_READS = """
    SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)
    FROM pg_stat_xact_user_tables WHERE relname = 'segment_count'"""


async def test_only_the_segments_that_a_filter_matches_are_read(engine: AsyncEngine) -> None:
    await add_clients(engine, SEGMENTS)
    await execute(engine, "UPDATE client SET tag = 'tag ' || id")
    await do(engine, lambda db: segment_counts.merge_deltas(db, 2 * SEGMENTS))
    await execute(engine, "ANALYZE segment_count")
    filters = combined_filters.CombinedFilters()
    with_one_tag = filters.add({"tags": ["tag 5"]})
    with_two_tags = filters.add({"tags": ["tag 6", "tag 7"]})

    async with engine.connect() as connection:
        reads_before = (await connection.exec_driver_sql(SEGMENT_ROW_READS)).scalar_one()
        counts = await combined_filters.count(connection, filters)
        reads_after = (await connection.exec_driver_sql(SEGMENT_ROW_READS)).scalar_one()

    assert counts == {with_one_tag: 1, with_two_tags: 2}
    assert 0 < reads_after - reads_before < SEGMENTS / 10


async def test_large_audiences_are_not_enqueued_with_small_ones(engine: AsyncEngine) -> None:
    await add_clients(engine, LARGE_AUDIENCE)
    await add_clients(engine, 2, operator_code="912")
    await add_mailing(engine, "large", None)
    small = await add_mailing(engine, "small", "912")
    await do(engine, starting.start_due)

    assert await enqueue_small(engine) == [small]
    assert await enqueue_small(engine) == []
    assert (await do(engine, pending_work.find_pending_work)).must_enqueue


async def test_an_audience_that_has_grown_since_it_was_counted_is_enqueued_in_chunks(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, LARGE_AUDIENCE)
    grown = await add_mailing(engine, "grown", "vip")
    small = await add_mailing(engine, "small", "912")
    await do(engine, starting.start_due)
    assert await value(engine, "SELECT max(clients_count) FROM mailing") == 0  # as it was counted
    await execute(engine, "UPDATE client SET tag = 'vip'")

    assert await enqueue_small(engine) == [small]

    assert await value(engine, COUNT_MESSAGES) == 0
    counted = f"SELECT clients_count FROM mailing WHERE id = {grown}"  # noqa: S608  # a number
    assert await value(engine, counted) == LARGE_AUDIENCE
    assert await enqueue_small(engine) == []
    await enqueue_and_replan(engine)
    assert await value(engine, COUNT_MESSAGES) == LARGE_AUDIENCE
    assert await find_differences(engine) == []


async def test_the_audience_of_a_changed_filter_is_counted_before_it_is_enqueued(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, LARGE_AUDIENCE)
    await execute(engine, "UPDATE client SET tag = 'vip' WHERE id = 1")
    mailing_id = await add_mailing(engine, "Hello", "vip")
    await do(engine, starting.start_due)
    assert await enqueue_small(engine) == [mailing_id]

    change = MailingChange(client_filter=None)
    changed = await service.change(engine, mailing_id, change, COMMAND_LINE)
    while (await do(engine, pending_work.find_pending_work)).must_replan:
        await do(engine, replanning.replan_chunk)

    assert changed.clients_count == LARGE_AUDIENCE
    assert await enqueue_small(engine) == []
    assert await value(engine, COUNT_MESSAGES) == 1
    await enqueue_and_replan(engine)
    assert await value(engine, COUNT_MESSAGES) == LARGE_AUDIENCE
    assert await find_differences(engine) == []


async def test_only_mailings_whose_filter_cannot_be_read_are_skipped(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 2)
    skipped = SkippedMailings()

    async def start() -> list[int]:
        return await do(engine, lambda db: starting.start_due(db, skipped=skipped))

    invalid_filters = ({"no": 1}, ["916"], 5)
    invalid = [await add_mailing(engine, "Hello", stored) for stored in invalid_filters]
    valid = await add_mailing(engine, "Hello", None)
    assert await start() == [valid]
    assert skipped == set(invalid)

    invalid_after_start = await add_mailing(engine, "Hello", "916")
    assert await start() == [invalid_after_start]
    set_filter = f"UPDATE mailing SET client_filter = '7' WHERE id = {invalid_after_start}"  # noqa: S608  # a number
    await execute(engine, set_filter)
    chunks = await do(engine, lambda db: small_audiences.enqueue_small(db, skipped))
    assert [chunk.mailing_id for chunk in chunks] == [valid]
    assert skipped == {*invalid, invalid_after_start}

    work = await do(engine, lambda db: pending_work.find_pending_work(db, skipped=skipped))
    assert not work.has_work
    # by a worker that does not skip them they are still to be started
    assert (await do(engine, pending_work.find_pending_work)).must_start
