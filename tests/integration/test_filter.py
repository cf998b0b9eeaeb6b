"""Whom a filter matches, in a real PostgreSQL, against a plain reading of the contract."""

import re
import unicodedata
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.examples import thorough

from mailer.client import directory as clients
from mailer.client.model import tag_columns
from mailer.db.schema import client
from mailer.mailing import audience, together
from mailer.mailing.model import ClientFilter, NewMailing
from mailer.text import clean_label
from mailer.validation import check

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
CODES = ("000", "007", "700", "912", "916", "999")
TAGS = (
    *("vip", "VIP", "vi", "vip2", " vip", "vip ", "v ip", "vip,gold", ",", "gold", "912", "91"),
    *("%", "v%", "_ip", "null", "None", "{vip}", '"vip"', "'vip'", "vip'--", "\\", "vi\\p", "[]"),
    *("é", "e\u0301", "ß", "SS", "ﬁ", "fi", "вип", "ВИП", "😀", "\u00a0", "vip\u200b", "a" * 64),
)
ZONES = ("UTC", "Etc/UTC", "Europe/Moscow", "Asia/Tokyo")


class Person(NamedTuple):
    """A client as far as filters look at it."""

    operator_code: str
    tag: str | None
    time_zone: str


PEOPLE = [
    Person(code, tag, ZONES[(i + j) % len(ZONES)])
    for i, code in enumerate(CODES)
    for j, tag in enumerate((None, *map(clean_label, TAGS)))
    if tag != ""
] + [Person(code, tag, zone) for code in CODES[:2] for tag in (None, "vip") for zone in ZONES]


@pytest.fixture(scope="module")
async def directory(shared_engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection to a directory of all these people; the first has id 1."""
    rows = [
        {"phone": f"79{number:09}", **person._asdict(), **tag_columns(person.tag)}
        for number, person in enumerate(PEOPLE)
    ]
    async with shared_engine.connect() as connection:
        await connection.execute(insert(client), rows)
        yield connection


def matches_plainly(given: Any, person: Person) -> bool:
    """Read the contract's section 3 word by word, on a filter as it was given."""
    if given is None:
        return True
    if isinstance(given, str):
        for part in re.split(",", given):
            while part and part[0].isspace():
                part = part[1:]  # noqa: PLW2901  # trimmed by and by
            while part and part[-1].isspace():
                part = part[:-1]  # noqa: PLW2901  # likewise
            if part and (part == person.operator_code or is_alike(part, person.tag)):
                return True
        return False
    is_in = {
        "operator_codes": lambda: person.operator_code in given["operator_codes"],
        "tags": lambda: any(is_alike(tag, person.tag) for tag in given["tags"]),
        "time_zones": lambda: person.time_zone in given["time_zones"],
    }
    return not any(not is_in[name]() for name in given)


def is_alike(given: str, tag: str | None) -> bool:
    """Compare a tag of a filter with a client's: case counts for nothing, nor what nobody sees."""
    return tag is not None and fold(clean_label(given)) == fold(tag)


def fold(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def as_given(client_filter: Any) -> ClientFilter:
    """Return a filter as it comes to be used: checked in a new mailing, stored, and read again."""
    mailing = {
        "datetime_start": "2026-03-05T00:00:00Z",
        "datetime_end": "2026-03-06T00:00:00Z",
        "text": "Hello",
        "client_filter": client_filter,
    }
    checked = check(NewMailing, mailing, NOON).client_filter
    stored = msgspec.json.decode(msgspec.json.encode(checked))
    assert stored == client_filter
    read: ClientFilter = msgspec.convert(stored, ClientFilter)
    return read


async def matched(directory: AsyncConnection, client_filter: ClientFilter) -> set[int]:
    query = select(client.c.id).where(audience.matches(client_filter))
    return set((await directory.execute(query)).scalars())


def matched_plainly(client_filter: Any) -> set[int]:
    return {
        number
        for number, person in enumerate(PEOPLE, start=1)
        if matches_plainly(client_filter, person)
    }


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
async def test_a_filter_matches_whom_the_contract_says(
    directory: AsyncConnection, client_filter: Any
) -> None:
    found = await matched(directory, as_given(client_filter))
    assert found == matched_plainly(client_filter)


@thorough
@given(filters=st.lists(st.none() | strings | objects, min_size=1, max_size=8))
@example(filters=[None, "912, vip", ",vip,, 912 ,", "вИП, ss, \u200bGold", {"tags": ["É"]}])
@example(filters=[{"time_zones": ["UTC"], "operator_codes": ["912"]}, {"time_zones": ["UTC"]}])
async def test_many_filters_together_match_as_many_as_each_alone(
    directory: AsyncConnection, filters: list[Any]
) -> None:
    together_ = together.Filters()
    numbers = [together_.add(msgspec.to_builtins(as_given(each))) for each in filters]

    counts = await together.count(directory, together_)

    found = [counts.get(number, 0) for number in numbers]
    assert found == [len(matched_plainly(each)) for each in filters]


@thorough
@given(client_filter=st.none() | strings | objects, size=st.integers(1, 30))
@example(client_filter=None, size=30)
@example(client_filter="912, vip", size=1)
@example(client_filter={"tags": ["vip"], "time_zones": ["UTC", "Asia/Tokyo"]}, size=30)
async def test_a_sample_has_as_many_as_are_wanted_of_those_whom_a_filter_matches(
    directory: AsyncConnection, client_filter: Any, size: int
) -> None:
    found = await audience.sample(directory, as_given(client_filter), size)

    ids = {client.id for client in found}
    assert ids <= matched_plainly(client_filter)
    assert len(ids) == len(found) == min(size, len(matched_plainly(client_filter)))


async def test_a_sample_is_of_as_many_kinds_as_it_may_be(directory: AsyncConnection) -> None:
    async with directory.begin_nested() as trial:
        await clients.fold(directory, 10**6)
        found = await audience.sample(directory, as_given({"operator_codes": ["000"]}), 10)
        assert len({(person.tag, person.time_zone) for person in found}) == 10
        await trial.rollback()


async def test_a_sample_is_the_same_when_the_directory_is_folded_and_has_nobody_deleted(
    directory: AsyncConnection,
) -> None:
    wanted = as_given({"operator_codes": ["000"], "tags": ["vip"]})
    async with directory.begin_nested() as trial:
        await clients.fold(directory, 10**6)
        before = await audience.sample(directory, wanted, 50)
        erased = {"deleted_at": NOON, "phone": None, "tag": None, "tag_written": None}
        gone = client.update().where(client.c.id == before[0].id)
        await directory.execute(gone.values(erased))
        after = await audience.sample(directory, wanted, 50)
        assert {found.id for found in after} == {found.id for found in before[1:]}
        await trial.rollback()


async def test_the_audience_is_counted_without_those_who_were_deleted(
    directory: AsyncConnection,
) -> None:
    async with directory.begin_nested() as trial:
        gone = client.update().where(client.c.id % 2 == 0)
        erased = {"deleted_at": NOON, "phone": None, "tag": None, "tag_written": None}
        await directory.execute(gone.values(erased))
        for client_filter in (None, "912, vip", {"operator_codes": ["000"], "time_zones": ["UTC"]}):
            counted = await audience.count(directory, as_given(client_filter))
            assert counted == sum(number % 2 for number in matched_plainly(client_filter)) > 0
        await trial.rollback()
