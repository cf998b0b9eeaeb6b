"""Filters of mailings in PostgreSQL, compared with the same rules written in Python.

`CLIENTS` are in the database. For filters that Hypothesis generates, the SQL must find the same of
them as `matches`. The rules are those of `mailer.mailing.client_filter`.
"""

import unicodedata
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.examples import thorough

from mailer.client import segment_counts
from mailer.client.model import tag_columns
from mailer.db.tables.client import client
from mailer.mailing import audience, combined_filters
from mailer.mailing.client_filter import ClientFilter
from mailer.mailing.model import NewMailing
from mailer.text import clean_label
from mailer.validation import check

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
MERGE_ALL = 10**6
"""More deltas of segment counts than there are."""
CODES = ("000", "007", "700", "912", "916", "999")
TAGS = (
    *("vip", "VIP", "vi", "vip2", " vip", "vip ", "v ip", "vip,gold", ",", "gold", "912", "91"),
    *("%", "v%", "_ip", "null", "None", "{vip}", '"vip"', "'vip'", "vip'--", "\\", "vi\\p", "[]"),
    *("é", "e\u0301", "ß", "SS", "ﬁ", "fi", "вип", "ВИП", "😀", "\u00a0", "vip\u200b", "a" * 64),
)
ZONES = ("UTC", "Etc/UTC", "Europe/Moscow", "Asia/Tokyo")
ERASED = {"deleted_at": NOON, "phone": None, "tag": None, "tag_written": None}
"""Columns of a client who is erased."""


class FakeClient(NamedTuple):
    """The fields of a client that a filter can ask for."""

    operator_code: str
    tag: str | None
    time_zone: str


CLIENTS = [
    # every code with every tag; the time zones in turn
    *(
        FakeClient(code, tag, ZONES[(code_number + tag_number) % len(ZONES)])
        for code_number, code in enumerate(CODES)
        for tag_number, tag in enumerate((None, *map(clean_label, TAGS)))
        if tag != ""
    ),
    # some codes and tags with every time zone
    *(FakeClient(code, tag, zone) for code in CODES[:2] for tag in (None, "vip") for zone in ZONES),
]


@pytest.fixture(scope="module")
async def connection(shared_engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection whose open transaction contains `CLIENTS`, with ids from 1 on."""
    rows = [
        {"phone": f"79{number:09}", **fake._asdict(), **tag_columns(fake.tag)}
        for number, fake in enumerate(CLIENTS)
    ]
    async with shared_engine.connect() as connection:
        await connection.execute(insert(client), rows)
        yield connection


def matches(client_filter: Any, fake: FakeClient) -> bool:
    """Return whether a client matches a filter, which is JSON."""
    if client_filter is None:
        return True
    if isinstance(client_filter, str):
        terms = [part.strip() for part in client_filter.split(",")]
        return any(
            term == fake.operator_code or equals_tag(term, fake.tag) for term in terms if term
        )
    is_in_list: dict[str, Callable[[list[str]], bool]] = {
        "operator_codes": lambda codes: fake.operator_code in codes,
        "tags": lambda tags: any(equals_tag(tag, fake.tag) for tag in tags),
        "time_zones": lambda zones: fake.time_zone in zones,
    }
    return all(is_in_list[name](entries) for name, entries in client_filter.items())


def equals_tag(term: str, tag: str | None) -> bool:
    """Return whether a term and a client's tag differ only in case and invisible characters."""
    return tag is not None and fold(clean_label(term)) == fold(tag)


def fold(text: str) -> str:
    """Return a text in the form in which texts that differ only in case are equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def store_and_read(client_filter: Any) -> ClientFilter:
    """Return a filter, given as JSON, as the program has it after it was validated and stored."""
    mailing = {
        "datetime_start": "2026-03-05T00:00:00Z",
        "datetime_end": "2026-03-06T00:00:00Z",
        "text": "Hello",
        "client_filter": client_filter,
    }
    checked = check(NewMailing, mailing, NOON).client_filter
    stored = msgspec.json.decode(msgspec.json.encode(checked))
    assert stored == client_filter
    converted: ClientFilter = msgspec.convert(stored, ClientFilter)
    return converted


async def query_matching_ids(connection: AsyncConnection, client_filter: ClientFilter) -> set[int]:
    """Return the ids of the clients whom a filter matches by its SQL condition."""
    query = select(client.c.id).where(audience.filter_condition(client_filter))
    return set((await connection.execute(query)).scalars())


def expected_ids(client_filter: Any) -> set[int]:
    """Return the ids of the clients in `CLIENTS` whom a filter should match, by `matches`."""
    return {
        client_id for client_id, fake in enumerate(CLIENTS, start=1) if matches(client_filter, fake)
    }


# ---- strategies: which filters Hypothesis generates -----------------------------------------
# What is listed twice is generated twice as often.

codes = st.sampled_from(CODES) | st.from_regex(r"[0-9]{3}", fullmatch=True)
tags = st.sampled_from(TAGS) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=64
)
zones = st.sampled_from((*ZONES, "America/New_York", "Etc/GMT+12"))
blanks = st.sampled_from(["", "", " ", "  ", "\t", "\n", "\u00a0", "\u2003"])
terms = st.tuples(blanks, codes | tags, blanks).map("".join) | blanks
strings = (
    st.lists(terms, min_size=1, max_size=6)
    .map(",".join)
    .filter(lambda text: any(clean_label(part) for part in text.split(",")))
)
objects = st.fixed_dictionaries(
    {},
    optional={
        "operator_codes": st.lists(codes, min_size=1, max_size=4),
        "tags": st.lists(tags.filter(clean_label), min_size=1, max_size=6),
        "time_zones": st.lists(zones, min_size=1, max_size=3),
    },
).filter(bool)


@thorough
@given(client_filter=st.none() | strings | strings | objects | objects)
@example(client_filter=None)
@example(client_filter="912, vip")
@example(client_filter=",vip,, 912 ,")
@example(client_filter="VIP")
@example(client_filter="вИП, ss, \u200bGold")
@example(client_filter={"tags": ["Vip ", "É"]})
@example(client_filter="None, null")
@example(client_filter="UTC")
@example(client_filter={"tags": ["vip,gold", " vip"]})
@example(client_filter={"operator_codes": ["007", "912"], "tags": ["vip"], "time_zones": ["UTC"]})
async def test_a_filter_in_sql_matches_the_same_clients_as_in_python(
    connection: AsyncConnection, client_filter: Any
) -> None:
    ids = await query_matching_ids(connection, store_and_read(client_filter))
    assert ids == expected_ids(client_filter)


@thorough
@given(filters=st.lists(st.none() | strings | objects, min_size=1, max_size=8))
@example(filters=[None, "912, vip", ",vip,, 912 ,", "вИП, ss, \u200bGold", {"tags": ["É"]}])
@example(filters=[{"time_zones": ["UTC"], "operator_codes": ["912"]}, {"time_zones": ["UTC"]}])
async def test_filters_counted_together_match_as_many_as_each_alone(
    connection: AsyncConnection, filters: list[Any]
) -> None:
    combined = combined_filters.CombinedFilters()
    numbers = [combined.add(msgspec.to_builtins(store_and_read(each))) for each in filters]

    counts = await combined_filters.count(connection, combined)

    counts_by_filter = [counts.get(number, 0) for number in numbers]
    assert counts_by_filter == [len(expected_ids(each)) for each in filters]


@thorough
@given(client_filter=st.none() | strings | objects, size=st.integers(1, 30))
@example(client_filter=None, size=30)
@example(client_filter="912, vip", size=1)
@example(client_filter={"tags": ["vip"], "time_zones": ["UTC", "Asia/Tokyo"]}, size=30)
async def test_a_sample_has_the_requested_number_of_matching_clients(
    connection: AsyncConnection, client_filter: Any, size: int
) -> None:
    sample = await audience.sample(connection, store_and_read(client_filter), size=size)

    ids = {client.id for client in sample}
    matching_ids = expected_ids(client_filter)
    assert ids <= matching_ids
    assert len(ids) == len(sample) == min(size, len(matching_ids))


async def test_a_sample_covers_as_many_segments_as_possible(connection: AsyncConnection) -> None:
    async with connection.begin_nested() as trial:
        await segment_counts.merge_deltas(connection, MERGE_ALL)
        sample = await audience.sample(
            connection, store_and_read({"operator_codes": ["000"]}), size=10
        )
        segments = {(sampled.tag, sampled.time_zone) for sampled in sample}
        assert len(segments) == 10
        await trial.rollback()


async def test_a_sample_has_no_erased_client_after_deltas_are_merged(
    connection: AsyncConnection,
) -> None:
    client_filter = store_and_read({"operator_codes": ["000"], "tags": ["vip"]})
    async with connection.begin_nested() as trial:
        await segment_counts.merge_deltas(connection, MERGE_ALL)
        before = await audience.sample(connection, client_filter, size=50)
        await connection.execute(client.update().where(client.c.id == before[0].id).values(ERASED))
        after = await audience.sample(connection, client_filter, size=50)
        assert {sampled.id for sampled in after} == {sampled.id for sampled in before[1:]}
        await trial.rollback()


async def test_erased_clients_are_not_counted_in_an_audience(
    connection: AsyncConnection,
) -> None:
    async with connection.begin_nested() as trial:
        has_even_id = client.c.id % 2 == 0
        await connection.execute(client.update().where(has_even_id).values(ERASED))
        for client_filter in (None, "912, vip", {"operator_codes": ["000"], "time_zones": ["UTC"]}):
            counted = await audience.count(connection, store_and_read(client_filter))
            with_odd_id = [number for number in expected_ids(client_filter) if number % 2 == 1]
            assert counted == len(with_odd_id) > 0
        await trial.rollback()
