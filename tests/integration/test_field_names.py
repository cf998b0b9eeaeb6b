"""The names of fields that clients have are counted with every change of clients."""

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import do, execute, value

from mailer.client import field_names
from mailer.client.field_names import MAX_KNOWN_NAMES, count_by_field, known_field_names
from mailer.statistics.verify import find_differences

PHONES = ("79160000001", "79160000002")


async def merge(engine: AsyncEngine) -> None:
    await do(engine, lambda db: field_names.merge_deltas(db, 1_000))


async def count_merged_and_not(engine: AsyncEngine) -> dict[str, int]:
    """Return the counts, which are the same before and after a merge, and right."""
    counts = await do(engine, count_by_field)
    await merge(engine)
    assert await do(engine, count_by_field) == counts
    assert await find_differences(engine) == []
    return counts


async def test_names_are_counted_with_every_change_of_a_client(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    ids = []
    for phone in PHONES:
        new = {"phone": phone, "fields": {"name": "Anna", "city": "Omsk"}}
        ids.append((await api.post("/clients", json=new)).json()["id"])
    assert await count_merged_and_not(engine) == {"city": 2, "name": 2}

    await api.patch(f"/clients/{ids[0]}", json={"fields": {"name": "Maria", "bonus": "1"}})
    assert await count_merged_and_not(engine) == {"name": 2, "bonus": 1, "city": 1}

    await api.patch(f"/clients/{ids[0]}", json={"tag": "vip"})
    await api.delete(f"/clients/{ids[1]}")
    assert await count_merged_and_not(engine) == {"bonus": 1, "name": 1}
    assert await value(engine, "SELECT count(*) FROM client_field_count") == 2


@pytest.mark.parametrize("is_merged", [True, False])
async def test_the_most_used_names_are_known(engine: AsyncEngine, *, is_merged: bool) -> None:
    await execute(
        engine,
        """INSERT INTO client_field_count_delta SELECT 'f' || n, n FROM generate_series(1, 200) AS n
           UNION ALL SELECT 'f200', -200""",
    )
    if is_merged:
        await merge(engine)
        await execute(engine, "INSERT INTO client_field_count_delta VALUES ('f1', 500)")
        expected = ["f1", *(f"f{n}" for n in range(199, 0, -1))]
    else:
        expected = [f"f{n}" for n in range(199, 0, -1)]
    assert await do(engine, known_field_names) == expected[:MAX_KNOWN_NAMES]
