"""Many mailings that begin together, and their audiences, by a few statements for all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.sample import add_clients, do, execute, take_audience, value

from mailer.access.model import COMMAND_LINE
from mailer.client import directory
from mailer.mailing import audience, moving, replanning, service, store, together
from mailer.mailing.model import MailingChange
from mailer.mailing.passing_over import PassedOver
from mailer.report.verify import differences

HOUR = timedelta(hours=1)
MESSAGES = """
    SELECT coalesce(jsonb_agg(jsonb_build_array(
        text, client_id, operator_code, time_zone, message.status, reason,
        CASE WHEN due_at = datetime_start THEN 'start'
            WHEN due_at > now() + interval '1 hour' THEN 'later' END)
        ORDER BY text, client_id), '[]')
    FROM message JOIN mailing ON mailing.id = mailing_id"""
NAME_ALL = "UPDATE client SET tag = 'tag ' || id WHERE id % 3 <> 0"


async def add(engine: AsyncEngine, words: str, client_filter: Any, **fields: Any) -> int:
    values = {
        "datetime_start": datetime.now(UTC) - HOUR,
        "datetime_end": datetime.now(UTC) + HOUR,
        "text": words,
        "client_filter": client_filter,
    } | fields
    return await do(engine, lambda db: store.add(db, values, 0))


@contextmanager
def counted(engine: AsyncEngine) -> Iterator[list[str]]:
    """Give the statements that are executed."""
    statements: list[str] = []

    def note(*args: Any) -> None:
        statements.append(args[2])

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)


async def take_small(engine: AsyncEngine, **options: Any) -> list[int]:
    taken = await do(engine, lambda db: together.take_small(db, PassedOver(), **options))
    return [one.mailing_id for one in taken]


async def test_many_mailings_begin_and_are_enqueued_by_as_many_statements_as_a_few(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, together.SLICE)
    await execute(engine, "UPDATE client SET tag = 'tag ' || id")
    used = []
    for several in (together.NEWEST, together.SLICE):
        for number in range(1, several + 1):
            await add(engine, "Hello", {"tags": [f"Tag {number}"]})
        with counted(engine) as statements:
            assert len(await do(engine, moving.begin_due)) == several
            assert len(await take_small(engine)) == several
        used.append(len(statements))

    assert used[0] == used[1]
    assert await value(engine, "SELECT count(*) FROM message") == together.SLICE + together.NEWEST
    assert (
        await value(engine, "SELECT sum(scheduled) FROM ledger") == together.SLICE + together.NEWEST
    )
    assert not (await do(engine, moving.look)).is_any
    assert await differences(engine) == []


async def test_small_audiences_are_the_same_together_as_one_by_one(engine: AsyncEngine) -> None:
    await add_clients(engine, 20)
    await add_clients(engine, 10, operator_code="912", time_zone="Asia/Tokyo")
    await add_clients(engine, 5, operator_code="912", time_zone="Europe/Moscow")
    await execute(engine, NAME_ALL, "UPDATE client SET tag = 'vip' WHERE id % 5 = 0")
    filters: list[Any] = [
        None,
        "912, tag 4, tag 4, nobody",
        ",,",
        "999",
        {"operator_codes": ["912"], "time_zones": ["Asia/Tokyo"]},
        {"tags": ["vip"], "operator_codes": ["916"]},
        {"time_zones": ["UTC", "Europe/Moscow"]},
    ]
    hour = datetime.now(UTC).hour + 12
    window = {
        "send_interval_time_start": f"{hour % 24:02}:30",
        "send_interval_time_end": f"{(hour + 1) % 24:02}:00",
    }
    lasting = {"datetime_end": datetime.now(UTC) + 72 * HOUR}
    for number, client_filter in enumerate(filters):
        await add(engine, f"plain {number}", client_filter)
        await add(engine, f"window {number}", client_filter, **window)
        await add(engine, f"long window {number}", client_filter, **window, **lasting)
        await add(engine, f"over {number}", client_filter, datetime_end=datetime.now(UTC))
        cancelled = await add(engine, f"cancelled {number}", client_filter)
        await execute(engine, f"UPDATE mailing SET status = 'cancelled' WHERE id = {cancelled}")  # noqa: S608  # of a test
    await do(engine, lambda db: moving.begin_due(db, 5 * len(filters)))
    await add_clients(engine, 3)  # these have joined too late
    await execute(
        engine, "UPDATE client SET deleted_at = now(), phone = NULL, tag = NULL WHERE id = 7"
    )
    async with engine.connect() as trial:
        while await audience.take_chunk(trial):
            pass
        one_by_one = (await trial.exec_driver_sql(MESSAGES)).scalar_one()
        counts = "SELECT array_agg(clients_count ORDER BY id) FROM mailing"
        counted_so = (await trial.exec_driver_sql(counts)).scalar_one()
        await trial.rollback()

    assert len(await take_small(engine, most=5 * len(filters))) == 5 * len(filters)

    assert len(one_by_one) > 100
    assert await value(engine, MESSAGES) == one_by_one
    assert await value(engine, counts) == counted_so
    assert await differences(engine) == []


async def test_those_whom_a_changed_filter_brings_back_are_scheduled_again(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 4)
    await add(engine, "Hello", None)
    await do(engine, moving.begin_due)
    await take_audience(engine)
    await execute(
        engine,
        "UPDATE message SET status = 'cancelled', reason = 'filter_changed' WHERE client_id > 2",
        "UPDATE message SET status = 'delivered', sent_at = now() WHERE client_id = 1",
        "UPDATE mailing SET audience_cursor = 0",
    )

    await take_small(engine)

    assert await value(engine, "SELECT scheduled FROM ledger") == 3
    assert await value(engine, "SELECT delivered FROM ledger") == 1
    assert await differences(engine) == []


async def test_the_newest_come_first_and_then_those_that_wait_longest(engine: AsyncEngine) -> None:
    await add_clients(engine, 1)
    now = datetime.now(UTC)
    ids = [
        await add(engine, "Hello", None, datetime_start=now - HOUR + timedelta(seconds=n))
        for n in range(2 * together.NEWEST + 3)
    ]
    newest, longest = ids[: -together.NEWEST - 1 : -1], ids[:2]

    begun = await do(engine, lambda db: moving.begin_due(db, together.NEWEST + 2))
    assert begun == newest + longest
    assert len(await do(engine, moving.begin_due)) == len(ids) - len(begun)
    assert sorted(await take_small(engine, most=together.NEWEST + 2)) == sorted(newest + longest)
    assert len(await take_small(engine)) == len(ids) - len(begun)


KINDS = 2_000
KINDS_READ = """
    SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)
    FROM pg_stat_xact_user_tables WHERE relname = 'directory'"""


async def test_only_the_kinds_of_clients_that_match_are_read(engine: AsyncEngine) -> None:
    await add_clients(engine, KINDS)
    await execute(engine, "UPDATE client SET tag = 'tag ' || id")
    await do(engine, lambda db: directory.fold(db, 2 * KINDS))
    await execute(engine, "ANALYZE directory")
    filters = together.Filters()
    numbers = [filters.add({"tags": tags}) for tags in (["tag 5"], ["tag 6", "tag 7"])]

    async with engine.connect() as connection:
        read_before = (await connection.exec_driver_sql(KINDS_READ)).scalar_one()
        counts = await together.count(connection, filters)
        read = (await connection.exec_driver_sql(KINDS_READ)).scalar_one()

    assert [counts[number] for number in numbers] == [1, 2]
    assert read - read_before < KINDS / 10


async def test_large_audiences_are_not_taken_with_small_ones(engine: AsyncEngine) -> None:
    await add_clients(engine, together.SMALL + 1)
    await add_clients(engine, 2, operator_code="912")
    await add(engine, "large", None)
    small = await add(engine, "small", "912")
    await do(engine, moving.begin_due)

    assert await take_small(engine) == [small]
    assert await take_small(engine) == []
    assert (await do(engine, moving.look)).takes


async def test_audience_that_has_grown_since_it_was_counted_is_left_to_chunks(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, together.SMALL + 1)
    grown = await add(engine, "grown", "vip")
    small = await add(engine, "small", "912")
    await do(engine, moving.begin_due)
    assert await value(engine, "SELECT max(clients_count) FROM mailing") == 0
    await execute(engine, "UPDATE client SET tag = 'vip'")

    assert await take_small(engine) == [small]

    assert await value(engine, "SELECT count(*) FROM message") == 0
    of_grown = f"SELECT clients_count FROM mailing WHERE id = {grown}"  # noqa: S608  # of a test
    assert await value(engine, of_grown) == together.SMALL + 1
    assert await take_small(engine) == []
    await take_audience(engine)
    assert await value(engine, "SELECT count(*) FROM message") == together.SMALL + 1
    assert await differences(engine) == []


async def test_changed_filter_of_a_running_mailing_is_counted_before_it_is_enqueued(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, together.SMALL + 1)
    await execute(engine, "UPDATE client SET tag = 'vip' WHERE id = 1")
    mailing_id = await add(engine, "grown", "vip")
    await do(engine, moving.begin_due)
    assert await take_small(engine) == [mailing_id]

    change = MailingChange(client_filter=None)
    changed = await service.change(engine, mailing_id, change, COMMAND_LINE)
    while (await do(engine, moving.look)).replans:
        await do(engine, replanning.replan_chunk)

    assert changed.clients_count == together.SMALL + 1
    assert await take_small(engine) == []
    assert await value(engine, "SELECT count(*) FROM message") == 1
    await take_audience(engine)
    assert await value(engine, "SELECT count(*) FROM message") == together.SMALL + 1
    assert await differences(engine) == []


async def test_one_that_cannot_be_enqueued_is_passed_over_and_the_others_are_not(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 2)
    passed_over = PassedOver()
    unreadable = [await add(engine, "Hello", broken) for broken in ({"no": 1}, ["916"], 5)]
    good = await add(engine, "Hello", None)
    assert await do(engine, lambda db: moving.begin_due(db, 9, passed_over)) == [good]
    assert passed_over == set(unreadable)

    spoilt = await add(engine, "Hello", "916")
    assert await do(engine, lambda db: moving.begin_due(db, 9, passed_over)) == [spoilt]
    await execute(engine, f"UPDATE mailing SET client_filter = '7' WHERE id = {spoilt}")  # noqa: S608  # of a test
    taken = await do(engine, lambda db: together.take_small(db, passed_over))
    assert [one.mailing_id for one in taken] == [good]
    assert passed_over == {*unreadable, spoilt}
    found = await do(engine, lambda db: moving.look(db, passed_over=passed_over))
    assert not found.is_any
    assert (await do(engine, moving.look)).begins
