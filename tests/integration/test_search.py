"""Searching mailings by words of their texts, and clients by phone."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.examples import thorough
from tests.factories import add_clients, do, execute

from mailer.client import store as clients
from mailer.db.paging import Cursor, RowPage
from mailer.mailing import listing
from mailer.mailing.search import MailingFilter
from mailer.statuses import MailingStatus

INSERT_MAILINGS = """
    WITH added AS (
        INSERT INTO mailing (datetime_start, datetime_end, text, clients_count)
        SELECT now(), now() + interval '1 hour', {text}, 0 FROM generate_series(1, {count}) AS n
        RETURNING id)
    INSERT INTO mailing_counts (mailing_id) SELECT id FROM added"""
"""Adds `count` mailings; `text` is an SQL expression, in which `n` is the number of the mailing."""


async def add_mailings(engine: AsyncEngine, *texts: str) -> None:
    """Add mailings with these texts; ids start at 1."""
    for text in texts:
        # as an SQL string; the backslash is for SQLAlchemy, to which `:` begins a parameter
        quoted = "'" + text.replace("'", "''").replace(":", "\\:") + "'"
        await execute(engine, INSERT_MAILINGS.format(text=quoted, count=1))


def find(words: str, status: MailingStatus | None = None) -> MailingFilter:
    """Return the filter of a search."""
    return MailingFilter(search=words, statuses=() if status is None else (status,))


async def search_page(
    engine: AsyncEngine,
    words: str,
    cursor: Cursor | None = None,
    status: MailingStatus | None = None,
) -> RowPage:
    """Return a page of the mailings that a search finds; by default the newest 100."""
    position = cursor or Cursor(limit=100)
    return await do(engine, lambda db: listing.page(db, position, find(words, status)))


async def search_ids(
    engine: AsyncEngine, words: str, status: MailingStatus | None = None
) -> Sequence[int]:
    """Return the ids of the mailings that a search finds, newest first; check their count, too."""
    result = await search_page(engine, words, status=status)
    ids = [row.id for row in result.rows]
    count = await do(engine, lambda db: listing.count(db, find(words, status)))
    assert result.count == len(ids) == count
    return ids


@pytest.mark.parametrize("typed", ["caf\u0065\u0301", "\u200bcafé\u2060", "ca\u00adfé"])
async def test_invisible_characters_in_a_search_are_ignored(
    engine: AsyncEngine, typed: str
) -> None:
    await add_mailings(engine, "A table in the café", "A table")
    assert await search_ids(engine, typed) == [1]


async def test_a_search_without_mailings_finds_none(engine: AsyncEngine) -> None:
    assert await search_ids(engine, "sale") == []


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
async def test_a_mailing_is_found_by_prefixes_of_its_words(
    engine: AsyncEngine, words: str, ids: list[int]
) -> None:
    await add_mailings(
        engine,
        "Big sale tonight, at half-price!",
        "SALES",
        "Скидки до конца недели 🎉",
        "C'est l'été",
        "Only 1500: https://shop.example.org/a?b",
        "Agent 007, ten o'clock \\ sharp",
    )
    assert await search_ids(engine, words) == ids


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
async def test_a_number_finds_the_mailing_with_that_id_too(
    engine: AsyncEngine, words: str, ids: list[int]
) -> None:
    await add_mailings(engine, "one", "two", "2 for 1")
    assert await search_ids(engine, words) == ids


async def test_search_and_status_are_combined(engine: AsyncEngine) -> None:
    await add_mailings(engine, "sale", "sale", "sale", "running")
    await execute(engine, "UPDATE mailing SET status = 'running' WHERE id IN (2, 4)")

    assert await search_ids(engine, "sale", "running") == [2]
    assert await search_ids(engine, "sale", "scheduled") == [3, 1]
    assert await search_ids(engine, "sale", "paused") == []
    # numbers find ids: mailing 2 is running, mailing 1 is not
    assert await search_ids(engine, "2", "running") == [2]
    assert await search_ids(engine, "1", "running") == []
    assert await search_ids(engine, "", "running") == []


async def test_a_search_finds_changed_texts_but_no_deleted_mailings(
    engine: AsyncEngine,
) -> None:
    await add_mailings(engine, "sale", "sale")
    await execute(
        engine,
        "UPDATE mailing SET text = 'gone' WHERE id = 1",
        "UPDATE mailing SET deleted_at = now() WHERE id = 2",
    )
    assert await search_ids(engine, "sale") == []
    assert await search_ids(engine, "#2") == []
    assert await search_ids(engine, "gone") == [1]


async def test_pages_of_a_search_among_thousands_of_mailings_have_no_gaps(
    engine: AsyncEngine,
) -> None:
    await execute(
        engine,
        INSERT_MAILINGS.format(
            text="CASE WHEN n % 500 = 0 THEN 'rare' ELSE 'sale' END", count=3_200
        ),
        "DELETE FROM mailing WHERE id BETWEEN 1600 AND 1700",
    )
    assert await search_ids(engine, "rare") == [3000, 2500, 2000, 1500, 1000, 500]

    async def ids(cursor: Cursor, *, has_newer: bool, has_older: bool) -> list[int]:
        """Return the ids on a page, and check whether there are newer and older mailings."""
        page = await search_page(engine, "rare", cursor)
        assert page.count == 6
        assert page.has_newer == has_newer
        assert page.has_older == has_older
        return [row.id for row in page.rows]

    assert await ids(Cursor(limit=2), has_newer=False, has_older=True) == [3000, 2500]
    # pages of older mailings, and back
    older = Cursor(limit=2, before=2500)
    assert await ids(older, has_newer=True, has_older=True) == [2000, 1500]
    newer = Cursor(limit=2, after=1500)
    assert await ids(newer, has_newer=True, has_older=True) == [2500, 2000]
    newest = Cursor(limit=2, after=2000)
    assert await ids(newest, has_newer=False, has_older=True) == [3000, 2500]


async def test_counting_stops_at_a_maximum(engine: AsyncEngine) -> None:
    mailings = listing.MAX_COUNTED_MAILINGS + 200
    await execute(engine, INSERT_MAILINGS.format(text="'sale'", count=mailings))

    result = await search_page(engine, "sale")

    assert result.count == listing.MAX_COUNTED_MAILINGS + 1  # means: more than the maximum
    assert result.rows[0].id == mailings


@thorough
@given(words=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@example(words="' OR true --")
@example(words="':* & !")
@example(words="\\':*")
@example(words="%s $1 :search {0}")
@example(words="a" * 5_000)
@example(words="😀" * 700)
@example(words=" ".join(f"w{n}" for n in range(2_000)))
async def test_no_search_text_is_an_error(shared_engine: AsyncEngine, words: str) -> None:
    async with shared_engine.begin() as connection:
        await listing.page(connection, Cursor(1), find(words))


async def test_words_too_long_for_the_index_are_found_by_their_beginning(
    engine: AsyncEngine,
) -> None:
    # one word of 3,200 bytes; PostgreSQL's text search allows less than 2,048
    await add_mailings(engine, "я" * 1_600)
    assert await search_ids(engine, "я" * 1_000) == [1]


async def test_a_client_is_found_by_phone_until_it_is_deleted(engine: AsyncEngine) -> None:
    _, client_id = await add_clients(engine, 2)

    async def ids_of(phone: str) -> list[int]:
        return await do(engine, lambda db: clients.find_ids_by_phone(db, phone))

    assert await ids_of("79160000002") == [client_id]
    assert await ids_of("79160000009") == []
    await do(engine, lambda db: clients.erase(db, client_id))
    assert await ids_of("79160000002") == []
