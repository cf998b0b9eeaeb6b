"""Mailings found by the words in their texts, and clients by phone."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.examples import thorough
from tests.sample import add_clients, do, execute

from mailer.client import store as clients
from mailer.db.paging import Position, Slice
from mailer.mailing import search, store
from mailer.mailing.model import Status

ADD = """
    WITH added AS (
        INSERT INTO mailing (datetime_start, datetime_end, text, clients_count)
        SELECT now(), now() + interval '1 hour', {text}, 0 FROM generate_series(1, {count}) AS n
        RETURNING id)
    INSERT INTO ledger (mailing_id) SELECT id FROM added"""


async def add(engine: AsyncEngine, *texts: str) -> None:
    """Add mailings with these texts; the first has id 1."""
    for text in texts:
        quoted = "'" + text.replace("'", "''").replace(":", "\\:") + "'"
        await execute(engine, ADD.format(text=quoted, count=1))


async def page(
    engine: AsyncEngine,
    words: str,
    position: Position | None = None,
    status: Status | None = None,
) -> Slice:
    asked = position or Position(100)
    return await do(engine, lambda db: store.page(db, asked, status, words))


async def found(engine: AsyncEngine, words: str, status: Status | None = None) -> Sequence[int]:
    result = await page(engine, words, status=status)
    ids = [row.id for row in result.rows]
    assert result.count == len(ids) == await do(engine, lambda db: store.count(db, status, words))
    return ids


@pytest.mark.parametrize("typed", ["caf\u0065\u0301", "\u200bcafé\u2060", "ca\u00adfé"])
async def test_search_is_read_without_what_nobody_sees(engine: AsyncEngine, typed: str) -> None:
    await add(engine, "A table in the café", "A table")
    assert await found(engine, typed) == [1]


async def test_where_there_is_no_mailing_none_is_found_at_once(engine: AsyncEngine) -> None:
    assert await found(engine, "sale") == []


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ("sale", [2, 1]),
        ("SALE", [2, 1]),
        ("sa", [2, 1]),
        ("ale", []),
        ("sale big", [1]),
        ("big, sale!", [1]),
        ("sale nothing", []),
        ("half-price", [1]),
        ("half pri", [1]),
        ("скидк", [3]),
        ("СКИДКИ", [3]),
        ("ÉTÉ", [4]),
        ("shop example", [5]),
        ("example.org/a", [5]),
        ("1500", [5]),
        ("15", [5]),
        ("007", [6]),
        ("o'clock", [6]),
        ("", []),
        ("  ", []),
        ("🎉", []),
        ("'", []),
        ("& | ! ( ) :* <-> \\", []),
    ],
)
async def test_mailing_is_found_by_words_that_its_own_begin_with(
    engine: AsyncEngine, words: str, ids: list[int]
) -> None:
    await add(
        engine,
        "Big sale tonight, at half-price!",
        "SALES",
        "Скидки до конца недели 🎉",
        "C'est l'été",
        "Only 1500: https://shop.example.org/a?b",
        "Agent 007, ten o'clock \\ sharp",
    )
    assert await found(engine, words) == ids


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ("#2", [3, 2]),
        ("2", [3, 2]),
        (" # 2", [3]),
        ("#02", [2]),
        ("#4", []),
        ("#99999999999999999999", []),
        ("#²", []),
    ],
)
async def test_number_finds_the_mailing_of_that_id_too(
    engine: AsyncEngine, words: str, ids: list[int]
) -> None:
    await add(engine, "one", "two", "2 for 1")
    assert await found(engine, words) == ids


async def test_search_and_status_are_both_met(engine: AsyncEngine) -> None:
    await add(engine, "sale", "sale", "sale", "running")
    await execute(engine, "UPDATE mailing SET status = 'running' WHERE id IN (2, 4)")

    assert await found(engine, "sale", "running") == [2]
    assert await found(engine, "sale", "scheduled") == [3, 1]
    assert await found(engine, "sale", "paused") == []
    assert await found(engine, "2", "running") == [2]
    assert await found(engine, "1", "running") == []
    assert await found(engine, "", "running") == []


async def test_search_follows_the_text_and_finds_nothing_that_is_deleted(
    engine: AsyncEngine,
) -> None:
    await add(engine, "sale", "sale")
    await execute(
        engine,
        "UPDATE mailing SET text = 'gone' WHERE id = 1",
        "UPDATE mailing SET deleted_at = now() WHERE id = 2",
    )
    assert await found(engine, "sale") == []
    assert await found(engine, "#2") == []
    assert await found(engine, "gone") == [1]


async def test_pages_of_a_search_join_over_thousands_of_mailings(engine: AsyncEngine) -> None:
    await execute(
        engine,
        ADD.format(text="CASE WHEN n % 500 = 0 THEN 'rare' ELSE 'sale' END", count=3_200),
        "DELETE FROM mailing WHERE id BETWEEN 1600 AND 1700",
    )
    assert await found(engine, "rare") == [3000, 2500, 2000, 1500, 1000, 500]
    newest = await page(engine, "rare", Position(2))
    assert [row.id for row in newest.rows] == [3000, 2500]
    assert (newest.count, newest.has_older, newest.has_newer) == (6, True, False)
    older = await page(engine, "rare", Position(2, before=2500))
    assert [row.id for row in older.rows] == [2000, 1500]
    assert (older.has_older, older.has_newer) == (True, True)
    newer = await page(engine, "rare", Position(2, after=1500))
    assert [row.id for row in newer.rows] == [2500, 2000]
    assert (newer.has_older, newer.has_newer) == (True, True)
    newer = await page(engine, "rare", Position(2, after=2000))
    assert [row.id for row in newer.rows] == [3000, 2500]
    assert not newer.has_newer


async def test_no_more_than_a_bound_is_counted(engine: AsyncEngine) -> None:
    await execute(engine, ADD.format(text="'sale'", count=1_200))

    result = await page(engine, "sale")

    assert result.count == search.MOST_COUNTED + 1
    assert result.rows[0].id == 1_200


@thorough
@given(words=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@example(words="' OR true --")
@example(words="':* & !")
@example(words="\\':*")
@example(words="%s $1 :search {0}")
@example(words="a" * 5_000)
@example(words="😀" * 700)
@example(words=" ".join(f"w{n}" for n in range(2_000)))
async def test_nothing_that_can_be_typed_is_an_error(
    shared_engine: AsyncEngine, words: str
) -> None:
    async with shared_engine.begin() as connection:
        await store.page(connection, Position(1), None, words)


async def test_text_of_words_too_long_to_be_kept_is_found_by_their_beginning(
    engine: AsyncEngine,
) -> None:
    await add(engine, "я" * 1_600)
    assert await found(engine, "я" * 1_000) == [1]


async def test_client_is_found_by_phone_until_it_is_deleted(engine: AsyncEngine) -> None:
    _, wanted = await add_clients(engine, 2)

    async def id_of(phone: str) -> int | None:
        return await do(engine, lambda db: clients.id_of_phone(db, phone))

    assert await id_of("79160000002") == wanted
    assert await id_of("79160000009") is None
    await do(engine, lambda db: clients.erase(db, wanted))
    assert await id_of("79160000002") is None
