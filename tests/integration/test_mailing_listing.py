"""Lists of mailings: filters, orders, pages, and the indexes that read them."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import ClauseElement, Executable, Select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from tests.factories import DAY, HOUR, NOON, add_mailings, do, execute

from mailer.db.paging import Cursor, RowPage, sort_key
from mailer.errors import InvalidError
from mailer.mailing import listing
from mailer.mailing.listing import SORT_COLUMNS, ListOrder
from mailer.mailing.search import MailingFilter
from mailer.sample_data import TEXT, SampleMailing

EVERYTHING = MailingFilter()
SET_LABEL = "UPDATE mailing SET labels = ARRAY['{0}'], label_keys = ARRAY['{0}'] WHERE id = {1}"
"""SQL that gives a mailing one label; the label is in the form in which labels are compared."""
INSERT_MAILINGS = """
    WITH added AS (
        INSERT INTO mailing (datetime_start, datetime_end, text, clients_count, status)
        SELECT at, at + interval '2 hours', 'sale', n, 'finished'
        FROM generate_series(1, {count}) AS n
        CROSS JOIN LATERAL (SELECT timestamptz '{start}' + n * interval '1 hour' AS at) AS _
        RETURNING id)
    INSERT INTO mailing_counts (mailing_id) SELECT id FROM added"""
"""SQL that adds `count` finished mailings, one each hour after `start`; each lasts two hours."""


async def read_page(
    engine: AsyncEngine,
    conditions: MailingFilter,
    order: ListOrder | None = None,
    cursor: Cursor | None = None,
) -> RowPage:
    """Return a page; by default the first 100 mailings."""
    position = cursor or Cursor(limit=100)
    return await do(engine, lambda db: listing.page(db, position, conditions, order))


async def ids_of(
    engine: AsyncEngine, conditions: MailingFilter, order: ListOrder | None = None
) -> list[int]:
    """Return the ids of the first page, and check their count."""
    page = await read_page(engine, conditions, order)
    assert page.count == len(page.rows)
    return [row.id for row in page.rows]


def at(hours: float) -> datetime:
    """Return the moment some hours after noon."""
    return NOON + timedelta(hours=hours)


@pytest.mark.parametrize(
    ("order", "positions"),
    [
        ("newest", [3, 2, 1, 0]),
        ("start", [1, 0, 3, 2]),
        ("end", [2, 1, 3, 0]),
        ("audience", [0, 3, 2, 1]),
    ],
)
async def test_the_list_has_the_order_that_is_asked_for(
    engine: AsyncEngine, order: ListOrder, positions: list[int]
) -> None:
    ids = await add_mailings(
        engine,
        SampleMailing(start=at(2), lasts=HOUR, clients=9),
        SampleMailing(start=at(3), lasts=DAY, clients=0, status="scheduled"),
        SampleMailing(start=at(0), lasts=2 * DAY, clients=5, status="finished"),
        SampleMailing(start=at(1), lasts=HOUR * 3, clients=5),
    )
    assert await ids_of(engine, EVERYTHING, order) == [ids[position] for position in positions]


@pytest.mark.parametrize("order", ["newest", "start", "end", "audience"])
@pytest.mark.parametrize("search", [None, TEXT.split(maxsplit=1)[0]], ids=["listed", "found"])
@pytest.mark.parametrize("statuses", [(), ("running", "finished")], ids=["all", "some"])
async def test_pages_of_every_order_have_no_gaps_in_both_directions(
    engine: AsyncEngine, order: ListOrder, statuses: tuple[Any, ...], search: str | None
) -> None:
    mailings = [
        SampleMailing(  # several mailings have the same start, end and size
            start=at(n % 3),
            lasts=HOUR * (6 - n % 3),
            clients=n % 2,
            status=("running", "finished", "scheduled")[n % 3 if n < 9 else 0],
        )
        for n in range(12)
    ]
    await add_mailings(engine, *mailings)
    conditions = MailingFilter(statuses=statuses, search=search)
    expected = await ids_of(engine, conditions, order)
    assert len(expected) == (9 if statuses else 12)

    found, position = [], Cursor(limit=5)
    while True:
        page = await read_page(engine, conditions, order, position)
        found += [row.id for row in page.rows]
        older = page.older_position()
        if older is None:
            break
        position = Cursor(limit=5, **older)
    assert found == expected

    newer = page.newer_position()
    assert newer is not None
    previous = await read_page(engine, conditions, order, Cursor(limit=5, **newer))
    first_of_last_page = expected.index(page.rows[0].id)
    assert [row.id for row in previous.rows] == expected[
        first_of_last_page - 5 : first_of_last_page
    ]
    assert previous.older_position() == {
        "before": previous.rows[-1].id,
        **(
            {"key": sort_key(getattr(previous.rows[-1], SORT_COLUMNS[order]))}
            if order in SORT_COLUMNS
            else {}
        ),
    }


PERIODS = [(0, 1), (1, 3), (2, 10), (4, 5), (5, 6), (9, 12)]
"""Starts and ends of mailings, in hours after noon."""


BOUNDS = [
    *((None, upper) for upper in (0, 1, 4.5, 13)),
    *((lower, None) for lower in (-1, 3, 9.5, 12)),
    *((0, 1), (1, 3), (3, 4.5), (4.5, 13), (5, 6), (-2, -1)),
]
"""Periods: their starts and ends, in hours after noon."""


@pytest.mark.parametrize(("lower", "upper"), BOUNDS)
async def test_a_period_finds_exactly_the_mailings_that_overlap_it(
    engine: AsyncEngine, lower: float | None, upper: float | None
) -> None:
    ids = await add_mailings(
        engine,
        *(SampleMailing(start=at(s), lasts=HOUR * (e - s), status="running") for s, e in PERIODS),
    )
    await execute(engine, "UPDATE mailing SET status = 'paused' WHERE id % 2 = 0")
    conditions = MailingFilter(
        ends_after=None if lower is None else at(lower),
        starts_before=None if upper is None else at(upper),
    )
    overlapping = [
        (start, end, mailing_id)
        for mailing_id, (start, end) in zip(ids, PERIODS, strict=True)
        if (lower is None or end > lower) and (upper is None or start < upper)
    ]

    by_start = [mailing_id for *_, mailing_id in sorted(overlapping, reverse=True)]
    assert await ids_of(engine, conditions, "start") == by_start
    by_end = sorted(overlapping, key=lambda each: each[1:], reverse=True)
    assert await ids_of(engine, conditions, "end") == [mailing_id for *_, mailing_id in by_end]
    assert await ids_of(engine, conditions) == by_start  # the default order
    paused = MailingFilter(
        statuses=("paused",),
        ends_after=conditions.ends_after,
        starts_before=conditions.starts_before,
    )
    assert await ids_of(engine, paused) == [
        mailing_id for mailing_id in by_start if mailing_id % 2 == 0
    ]


async def test_deleted_mailings_are_in_no_list(engine: AsyncEngine) -> None:
    await add_mailings(engine, *[SampleMailing(start=NOON)] * 2)
    await execute(
        engine,
        *(SET_LABEL.format("sale", mailing_id) for mailing_id in (1, 2)),
        "UPDATE mailing SET deleted_at = now() WHERE id = 2",
    )
    for order in ("newest", "start", "end", "audience"):
        assert await ids_of(engine, EVERYTHING, order) == [1]
    assert await ids_of(engine, MailingFilter(ends_after=at(1))) == [1]
    assert await ids_of(engine, MailingFilter(label="sale")) == [1]


@pytest.mark.parametrize(
    "label", ["a' | 'b", "\\", "'", "12 #x", ":*", "& !x", "=running", "ß", "😀", "a" * 32]
)
async def test_a_label_of_any_characters_finds_only_itself(engine: AsyncEngine, label: str) -> None:
    await add_mailings(engine, *[SampleMailing(start=NOON)] * 3)
    # the backslash is for SQLAlchemy, to which `:` begins a parameter
    quoted = label.casefold().replace("'", "''").replace(":", "\\:")
    await execute(engine, SET_LABEL.format(quoted, 2), SET_LABEL.format("b", 3))
    assert await ids_of(engine, MailingFilter(label=label)) == [2]
    assert await ids_of(engine, MailingFilter(label=label, statuses=("paused",))) == []


async def test_counting_the_mailings_of_a_period_stops_at_a_maximum(engine: AsyncEngine) -> None:
    await fill(engine, listing.MAX_COUNTED_MAILINGS + 200)
    page = await read_page(engine, MailingFilter(ends_after=NOON))
    assert page.count == listing.MAX_COUNTED_MAILINGS + 1


async def fill(engine: AsyncEngine, count: int) -> None:
    """Add finished mailings, one an hour from noon on; each lasts two hours."""
    await execute(engine, INSERT_MAILINGS.format(count=count, start=NOON), "ANALYZE mailing")


@pytest.mark.parametrize(
    ("order", "conditions", "position", "indexes"),
    [
        ("newest", EVERYTHING, Cursor(50), {"mailing_pkey"}),
        (
            "newest",
            MailingFilter(statuses=("running", "paused")),
            Cursor(50),
            {"mailing_status_id_idx"},
        ),
        ("start", EVERYTHING, Cursor(50), {"mailing_status_datetime_start_id_idx"}),
        (
            "end",
            EVERYTHING,
            Cursor(50, before=5_000, key=sort_key(NOON + 5_000 * HOUR)),
            {"mailing_status_datetime_end_id_idx"},
        ),
        (
            "audience",
            EVERYTHING,
            Cursor(50, after=5_000, key=5_000),
            {"mailing_status_clients_count_id_idx"},
        ),
        (
            "start",
            MailingFilter(ends_after=NOON + 9_000 * HOUR, starts_before=NOON + 9_500 * HOUR),
            Cursor(50),
            {"mailing_status_datetime_start_id_idx", "mailing_period_idx"},
        ),
        (
            "end",
            MailingFilter(starts_before=NOON + 900 * HOUR),
            Cursor(50),
            {"mailing_status_datetime_end_id_idx", "mailing_period_idx"},
        ),
    ],
)
async def test_a_page_reads_few_rows_of_its_indexes_alone(
    engine: AsyncEngine,
    order: ListOrder,
    conditions: MailingFilter,
    position: Cursor,
    indexes: set[str],
) -> None:
    await fill(engine, 10_000)
    query = Explain(listing.select_ids(conditions, order, position))

    async with engine.connect() as connection:
        [plan] = (await connection.execute(query)).scalar_one()

    nodes = list(walk(plan["Plan"]))
    assert {node["Index Name"] for node in nodes if "Index Name" in node} == indexes
    assert not any(node["Node Type"] == "Seq Scan" for node in nodes)
    read = [
        node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        for node in nodes
        if "Index Name" in node
    ]
    assert max(read) <= 51


class Explain(Executable, ClauseElement):
    """A query that is executed and whose plan is returned, as JSON."""

    inherit_cache = False

    def __init__(self, query: Select[Any]) -> None:
        self.query = query


@compiles(Explain)
def compile_explain(element: Explain, compiler: SQLCompiler, **options: Any) -> str:
    """Return the SQL of `Explain`."""
    return f"EXPLAIN (ANALYZE, FORMAT JSON) {compiler.process(element.query, **options)}"


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a node of a plan and all nodes under it."""
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)


async def test_more_found_mailings_than_are_counted_are_not_sorted(engine: AsyncEngine) -> None:
    await fill(engine, listing.MAX_COUNTED_MAILINGS)
    conditions = MailingFilter(search="sale")
    page = await read_page(engine, conditions, "start")
    assert len(page.rows) == 100
    await fill(engine, 1)
    with pytest.raises(InvalidError) as refused:
        await read_page(engine, conditions, "start")
    assert [error.field for error in refused.value.errors] == ["sort"]
    newest = await read_page(engine, conditions, "newest")
    assert newest.count == listing.MAX_COUNTED_MAILINGS + 1
