"""Lists of clients in filters: counts, enqueuing, replanning and retries know them."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import asdict, replace
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.event_timeout import let_run
from tests.factories import (
    HOUR,
    add_clients,
    add_messages,
    do,
    enqueue_and_replan,
    execute,
    put_on_list,
    rows,
    schedule_retried,
    value,
)
from tests.statements import plans_of, recorded_statements

from mailer.access.model import COMMAND_LINE
from mailer.client.lists import store as lists
from mailer.client.lists.conditions import next_memberships
from mailer.client.lists.model import ListInUseError
from mailer.client.lists.service import delete
from mailer.errors import InvalidError
from mailer.forecast.store import count_by_code_and_zone
from mailer.mailing import audience, enqueuing, service, small_audiences, starting, store
from mailer.mailing.client_filter import AudienceLists, ClientFilter
from mailer.mailing.enqueuing import ENQUEUE_BATCH, FIRST_BATCH
from mailer.mailing.model import MailingChange, NewMailing
from mailer.mailing.reach import count_more
from mailer.mailing.skipped import SkippedMailings

MANY = FIRST_BATCH + ENQUEUE_BATCH + 500
"""Clients of an audience that takes three chunks."""
RECIPIENTS = (
    "SELECT array_agg(client_id ORDER BY client_id) FROM message WHERE status <> 'cancelled'"
)


def on_lists(*names: str, **others: list[str]) -> AudienceLists:
    """Return the filter for the clients on any of these lists."""
    return AudienceLists(lists=list(names), **others)


def new_mailing(client_filter: ClientFilter) -> NewMailing:
    """Return a mailing that is due and ends in an hour."""
    now = datetime.now(UTC)
    return NewMailing(
        text="Hello",
        datetime_start=now - timedelta(seconds=1),
        datetime_end=now + HOUR,
        client_filter=client_filter,
    )


async def add_started(engine: AsyncEngine, client_filter: ClientFilter) -> int:
    """Create a mailing and start it; its audience is not enqueued yet."""
    created = await service.create(engine, new_mailing(client_filter), COMMAND_LINE)
    await do(engine, starting.start_due)
    return created.id


async def count(engine: AsyncEngine, client_filter: ClientFilter, **options: Any) -> int:
    async with engine.connect() as connection:
        return await audience.count(connection, client_filter, **options)


@pytest.fixture
async def directory(engine: AsyncEngine) -> dict[str, list[int]]:
    """Create clients on the lists A (1, 2, 3) and B (3, 4); client 5 is on none."""
    ids = await add_clients(engine, 5)
    await execute(
        engine,
        f"UPDATE client SET tag = 'vip' WHERE id IN ({ids[1]}, {ids[4]})",  # noqa: S608  # numbers
        f"UPDATE client SET operator_code = '900' WHERE id = {ids[2]}",  # noqa: S608  # a number
    )
    await put_on_list(engine, "A", ids[:3])
    await put_on_list(engine, "B", ids[2:4])
    return {"all": ids, "A": ids[:3], "B": ids[2:4]}


async def test_a_client_on_two_lists_of_a_filter_counts_once(
    engine: AsyncEngine, directory: dict[str, list[int]]
) -> None:
    assert await count(engine, on_lists("A")) == 3
    assert await count(engine, on_lists("b", "a")) == 4  # without regard to case
    assert await count(engine, on_lists("A", tags=["VIP"])) == 1
    assert await count(engine, on_lists("A", operator_codes=["900"], time_zones=["UTC"])) == 1
    assert await count(engine, on_lists("B", tags=["vip"])) == 0
    assert await count(engine, None) == len(directory["all"])


async def test_opted_out_clients_on_a_list_are_counted_apart(
    engine: AsyncEngine, directory: dict[str, list[int]]
) -> None:
    await execute(engine, f"UPDATE client SET opted_out_at = now() WHERE id = {directory['A'][0]}")  # noqa: S608  # a number
    assert await count(engine, on_lists("A"), opted_out=True) == 1
    assert await count(engine, on_lists("A"), opted_out=False) == 2


async def test_all_counts_of_an_audience_know_lists(
    engine: AsyncEngine, directory: dict[str, list[int]]
) -> None:
    async with engine.connect() as connection:
        assert await audience.count_by_zone(connection, on_lists("A", "B")) == {"UTC": 4}
        assert await count_by_code_and_zone(connection, on_lists("A")) == {
            ("916", "UTC"): 2,
            ("900", "UTC"): 1,
        }
        assert await audience.count_both(connection, on_lists("A"), on_lists("B")) == 1
        assert await audience.count_both(connection, on_lists("A"), None) == 3
        assert await audience.count_both(connection, "vip", on_lists("A")) == 1
        sample = await audience.sample(connection, on_lists("A"), 2)
    assert [client.id for client in sample] == directory["A"][:2]


async def test_the_clients_of_a_list_are_read_once_for_several_counts(
    engine: AsyncEngine, directory: dict[str, list[int]]
) -> None:
    await execute(engine, f"UPDATE client SET opted_out_at = now() WHERE id = {directory['A'][0]}")  # noqa: S608  # a number
    async with engine.connect() as connection:
        with recorded_statements(engine) as statements, audience.segments_read_once():
            assert await audience.count(connection, on_lists("A")) == 3
            assert await audience.count(connection, on_lists("A"), opted_out=True) == 1
            assert await audience.count_by_zone(connection, on_lists("A")) == {"UTC": 3}
            by_code = await count_by_code_and_zone(connection, on_lists("A"), opted_out=False)
            assert by_code == {("916", "UTC"): 1, ("900", "UTC"): 1}
            assert await audience.count(connection, on_lists("A", tags=["none"])) == 0
            assert await audience.count_by_zone(connection, on_lists("A", tags=["none"])) == {}
            assert await audience.count(connection, "vip") == 2  # without lists: from the counters
    of_lists = [statement for statement in statements if "client_list_member" in statement]
    assert len(of_lists) == 2  # one for each filter with lists
    assert await count(engine, on_lists("A")) == 3


@pytest.mark.parametrize("is_small", [True, False])
async def test_exactly_the_clients_on_the_lists_get_a_message(
    engine: AsyncEngine, directory: dict[str, list[int]], *, is_small: bool
) -> None:
    mailing_id = await add_started(engine, on_lists("A", "B"))
    if is_small:
        await do(engine, lambda db: small_audiences.enqueue_small(db, SkippedMailings()))
    else:
        await enqueue_and_replan(engine)
    assert await value(engine, RECIPIENTS) == directory["all"][:4]
    assert (await get(engine, mailing_id)).clients_count == 4


@pytest.mark.parametrize("is_small", [True, False])
async def test_the_other_conditions_of_a_filter_must_match_too(
    engine: AsyncEngine, directory: dict[str, list[int]], *, is_small: bool
) -> None:
    mailing_id = await add_started(engine, on_lists("A", tags=["vip"]))
    if is_small:
        await do(engine, lambda db: small_audiences.enqueue_small(db, SkippedMailings()))
    else:
        await enqueue_and_replan(engine)
    assert await value(engine, RECIPIENTS) == [directory["all"][1]]
    assert (await get(engine, mailing_id)).clients_count == 1


async def get(engine: AsyncEngine, mailing_id: int) -> Any:
    async with engine.connect() as connection:
        return await store.get(connection, mailing_id)


async def test_small_audiences_with_and_without_lists_are_enqueued_together(
    engine: AsyncEngine, directory: dict[str, list[int]]
) -> None:
    filters: list[ClientFilter] = [on_lists("A"), "vip", on_lists("B"), None]
    for each in filters:
        await service.create(engine, new_mailing(each), COMMAND_LINE)
    await do(engine, starting.start_due)
    await do(engine, lambda db: small_audiences.enqueue_small(db, SkippedMailings()))
    counts = await rows(
        engine, "SELECT count(*) FROM message GROUP BY mailing_id ORDER BY mailing_id"
    )
    assert [row["count"] for row in counts] == [3, 2, 2, len(directory["all"])]


async def test_a_large_list_is_enqueued_in_chunks_without_gaps(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 2 * MANY)
    await put_on_list(engine, "even", clients[::2])
    await put_on_list(engine, "third", clients[::3])
    expected = sorted({*clients[::2], *clients[::3]})
    await add_started(engine, on_lists("even", "third"))
    chunks = 0
    while await do(engine, enqueuing.enqueue_chunk):
        chunks += 1
    assert chunks > 2
    assert await value(engine, RECIPIENTS) == expected


async def test_chunks_of_a_list_continue_behind_clients_who_do_not_match(
    engine: AsyncEngine,
) -> None:
    clients = await add_clients(engine, MANY)
    last = clients[-1]
    await execute(engine, f"UPDATE client SET tag = 'vip' WHERE id = {last}")  # noqa: S608  # a number
    await put_on_list(engine, "A", clients)
    await add_started(engine, on_lists("A", tags=["vip"]))
    await enqueue_and_replan(engine)
    assert await value(engine, RECIPIENTS) == [last]


async def test_enqueuing_for_a_list_reads_the_list_and_no_other_clients(
    engine: AsyncEngine,
) -> None:
    clients = await add_clients(engine, MANY)
    await put_on_list(engine, "A", clients[-10:])
    await put_on_list(engine, "B", clients[:5])
    await put_on_list(engine, "large", clients)
    await execute(engine, "ANALYZE client", "ANALYZE client_list_member", "ANALYZE client_list")
    await add_started(engine, on_lists("A", "B"))
    plans = await plans_of(engine, enqueuing.enqueue_chunk)
    plans_of_clients = [plan for plan in plans if "client_list_member" in plan]
    assert len(plans_of_clients) == 2  # the size of the chunk, and its messages
    for plan in plans_of_clients:
        assert_reads_clients_by_id(plan)
    assert len(await value(engine, RECIPIENTS)) == 15


async def test_counting_a_list_reads_the_list_and_no_other_clients(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, MANY)
    await put_on_list(engine, "A", clients[-10:])
    await put_on_list(engine, "large", clients)
    await execute(engine, "ANALYZE client", "ANALYZE client_list_member", "ANALYZE client_list")

    async def do_counts(connection: AsyncConnection) -> None:
        await audience.count(connection, on_lists("A"))
        await audience.count_by_zone(connection, on_lists("A", "large"))

    plans = [plan for plan in await plans_of(engine, do_counts) if "client_list_member" in plan]
    assert len(plans) == 2
    for plan in plans:
        assert_reads_clients_by_id(plan)


async def test_a_chunk_of_two_large_lists_reads_only_a_chunk_of_each(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, MANY)
    ids = [await put_on_list(engine, name, clients) for name in ("A", "B")]
    await execute(engine, "ANALYZE client_list_member")
    chunk = select(next_memberships(ids, 0, clients[-1], FIRST_BATCH))
    statement = chunk.compile(engine.sync_engine, compile_kwargs={"literal_binds": True})
    plan = await rows(engine, f"EXPLAIN ANALYZE {statement}")
    rows_read = re.findall(r"actual time=\S+ rows=(\d+)", str(plan))
    assert max(map(int, rows_read)) == 2 * FIRST_BATCH


def assert_reads_clients_by_id(plan: str) -> None:
    """Assert that a plan reads members of lists by their key, and each client by its id."""
    assert "Seq Scan on client" not in plan
    assert "using client_pkey on client" in plan
    assert "client_list_member_pkey on client_list_member" in plan
    ids = [line for line in plan.splitlines() if "Index Cond: (id = " in line]
    assert any("client_id)" in line for line in ids)


async def test_a_new_filter_excludes_clients_who_are_on_no_list_of_it(
    engine: AsyncEngine, directory: dict[str, list[int]]
) -> None:
    mailing_id = await add_started(engine, None)
    await enqueue_and_replan(engine)
    await service.change(
        engine, mailing_id, MailingChange(client_filter=on_lists("B")), COMMAND_LINE
    )
    await enqueue_and_replan(engine)
    assert await value(engine, RECIPIENTS) == directory["B"]
    await service.change(
        engine, mailing_id, MailingChange(client_filter=on_lists("A", "B")), COMMAND_LINE
    )
    await enqueue_and_replan(engine)
    assert await value(engine, RECIPIENTS) == directory["all"][:4]


async def test_a_retry_leaves_out_clients_who_left_the_list(
    engine: AsyncEngine, directory: dict[str, list[int]]
) -> None:
    mailing_id = await add_started(engine, on_lists("B"))
    await execute(engine, "UPDATE mailing SET audience_cursor = audience_until")
    await add_messages(engine, mailing_id, directory["B"] + directory["A"][:1], "undelivered")
    await service.retry(engine, mailing_id, COMMAND_LINE)
    await schedule_retried(engine)
    scheduled = (
        "SELECT array_agg(client_id ORDER BY client_id) FROM message WHERE status = 'scheduled'"
    )
    assert await value(engine, scheduled) == directory["B"]


@pytest.mark.usefixtures("directory")
async def test_a_larger_audience_is_counted_between_lists(engine: AsyncEngine) -> None:
    mailing_id = await add_started(engine, on_lists("A"))
    await enqueue_and_replan(engine)
    mailing = await get(engine, mailing_id)
    async with engine.connect() as connection:
        assert await count_more(connection, mailing, on_lists("A", "B")) == 1
        assert await count_more(connection, mailing, None) == 2


@pytest.mark.usefixtures("directory")
async def test_unknown_lists_in_a_filter_are_all_named(engine: AsyncEngine) -> None:
    with pytest.raises(InvalidError) as refused:
        await service.create(engine, new_mailing(on_lists("X", "a", "Y")), COMMAND_LINE)
    [error] = refused.value.errors
    assert error.field == "client_filter.lists"
    assert error.message.endswith(": X, Y")
    mailing_id = await add_started(engine, on_lists("A"))
    with pytest.raises(InvalidError):
        await service.change(
            engine, mailing_id, MailingChange(client_filter=on_lists("X")), COMMAND_LINE
        )


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize("status", ["scheduled", "running", "paused", "finished"])
async def test_a_list_of_a_mailing_that_has_not_ended_cannot_be_deleted(
    engine: AsyncEngine, status: str
) -> None:
    mailing_id = await add_started(engine, on_lists("a"))
    await execute(
        engine,
        "UPDATE mailing SET audience_until = NULL, audience_cursor = 0",
        f"UPDATE mailing SET status = '{status}', is_closed = '{status}' = 'finished'",  # noqa: S608  # values of the test
    )
    list_id = await value(engine, "SELECT id FROM client_list WHERE name = 'A'")
    with pytest.raises(ListInUseError, match=f"#{mailing_id}"):
        await delete(engine, list_id, COMMAND_LINE)
    await execute(
        engine,
        "UPDATE mailing SET is_closed = true, status = 'finished',"
        " datetime_start = now() - interval '2 hours', datetime_end = now() - interval '1 hour'",
    )
    await delete(engine, list_id, COMMAND_LINE)


@pytest.mark.usefixtures("directory")
async def test_a_list_of_a_draft_can_be_deleted_only_after_the_draft(engine: AsyncEngine) -> None:
    draft = replace(new_mailing(on_lists("A")), draft=True)
    mailing_id = (await service.create(engine, draft, COMMAND_LINE)).id
    list_id = await value(engine, "SELECT id FROM client_list WHERE name = 'A'")
    with pytest.raises(ListInUseError, match=f"#{mailing_id}"):
        await delete(engine, list_id, COMMAND_LINE)
    await service.delete(engine, mailing_id, COMMAND_LINE)
    await delete(engine, list_id, COMMAND_LINE)


async def test_a_sample_of_a_list_finds_clients_behind_many_who_do_not_match(
    engine: AsyncEngine,
) -> None:
    clients = await add_clients(engine, audience.SAMPLED_MEMBERS + 2)
    last = clients[-1]
    await execute(engine, f"UPDATE client SET tag = 'vip' WHERE id = {last}")  # noqa: S608  # a number
    await put_on_list(engine, "A", clients)
    async with engine.connect() as connection:
        sample = await audience.sample(connection, on_lists("A", tags=["vip"]), 5)
    assert [client.id for client in sample] == [last]


@pytest.mark.usefixtures("directory")
async def test_a_mailing_for_a_list_that_is_being_deleted_is_refused(engine: AsyncEngine) -> None:
    list_id = await value(engine, "SELECT id FROM client_list WHERE name = 'A'")
    async with engine.begin() as connection:
        await lists.lock_for_deletion(connection, list_id)
        await lists.mark_deleted(connection, list_id)
        creating = asyncio.create_task(
            service.create(engine, new_mailing(on_lists("A")), COMMAND_LINE)
        )
        await let_run(creating)
        assert not creating.done()
    with pytest.raises(InvalidError, match="not found: A"):
        await creating


@pytest.mark.usefixtures("directory")
async def test_a_list_that_a_new_mailing_is_for_is_not_deleted(engine: AsyncEngine) -> None:
    list_id = await value(engine, "SELECT id FROM client_list WHERE name = 'A'")
    async with engine.begin() as connection:
        await audience.ensure_lists_exist(connection, on_lists("A"))
        deleting = asyncio.create_task(delete(engine, list_id, COMMAND_LINE))
        await let_run(deleting)
        assert not deleting.done()
        columns = asdict(new_mailing(on_lists("A")))
        del columns["draft"]
        await store.create(connection, columns, 3)
    with pytest.raises(ListInUseError):
        await deleting
