"""How many clients of an audience get a text with placeholders, and in how many parts."""

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import add_clients, do, execute, put_on_list
from tests.statements import plans_of

from mailer.clock import elapsed
from mailer.mailing.client_filter import ClientFilter
from mailer.mailing.field_sample import MAX_ALL_CLIENTS, MAX_SCANNED_CLIENTS, read_fields
from mailer.mailing.field_types import Purpose
from mailer.mailing.text_reach import (
    MAX_KEPT_REACHES,
    MAX_REACH_AGE,
    PartsCount,
    TextReach,
    kept_reaches,
    read_text_reach,
    recent_text_reach,
)
from mailer.mailing.text_template import parse

LARGE = MAX_ALL_CLIENTS + 2_000


async def reach(
    engine: AsyncEngine,
    text: str,
    client_filter: ClientFilter = None,
    purpose: Purpose = "marketing",
) -> TextReach:
    return await read_text_reach(engine, parse(text), client_filter, purpose)


async def test_parts_and_missing_fields_of_a_small_audience_are_exact(engine: AsyncEngine) -> None:
    ids = await add_clients(engine, 10)
    await add_clients(engine, 3, operator_code="903")
    await execute(
        engine,
        """UPDATE client SET fields = CASE WHEN id % 2 = 0 THEN '{"name": "Anna"}'
            ELSE jsonb_build_object('name', repeat('Я', 80)) END""",
        f"UPDATE client SET fields = '{{}}' WHERE id <= {ids[1]}",  # noqa: S608  # a number
    )
    result = await reach(engine, "Dear {{ name }}", "916")
    assert result.by_parts == (PartsCount(1, 4), PartsCount(2, 4))
    assert (result.clients, result.missing, result.total_parts) == (10, 2, 12)
    assert (result.missing_ids, result.missing_fields) == (tuple(ids[:2]), ("name",))
    assert result.in_unicode == 4
    assert not result.is_estimate
    assert (await reach(engine, "Dear {{ name | friend }}", "916")).unreached == 0


async def test_clients_for_whom_the_text_is_too_long_are_counted(engine: AsyncEngine) -> None:
    await add_clients(engine, 2)
    await execute(engine, "UPDATE client SET fields = jsonb_build_object('a', repeat('x', 200))")
    result = await reach(engine, "{{ a }}" * 9)
    assert (result.too_long, result.unreached, result.by_parts) == (2, 2, ())


async def test_clients_who_have_opted_out_count_in_a_service_mailing_only(
    engine: AsyncEngine,
) -> None:
    (_, opted_out) = await add_clients(engine, 2)
    await execute(engine, f"UPDATE client SET opted_out_at = now() WHERE id = {opted_out}")  # noqa: S608  # a number
    assert (await reach(engine, "{{ a }}")).missing == 1
    assert (await reach(engine, "{{ a }}", purpose="service")).missing == 2


async def test_empty_audience_has_no_parts(engine: AsyncEngine) -> None:
    result = await reach(engine, "{{ a }}")
    assert (result.clients, result.by_parts, result.unreached) == (0, (), 0)
    assert not result.is_estimate


@pytest.mark.parametrize("client_filter", [None, "916"])
async def test_large_audience_is_estimated_from_a_sample(
    engine: AsyncEngine, client_filter: ClientFilter
) -> None:
    await add_clients(engine, LARGE)
    await execute(
        engine,
        """UPDATE client SET fields = '{"name": "Anna"}' WHERE id % 4 > 0""",
        "ANALYZE client",
    )
    result = await reach(engine, "Dear {{ name }}", client_filter)
    assert result.is_estimate
    assert result.read_clients < LARGE
    assert result.clients == LARGE
    assert 0.2 < result.missing / LARGE < 0.3
    assert abs(result.missing + result.by_parts[0].clients - LARGE) <= 1
    assert await reach(engine, "Dear {{ name }}", client_filter) == result


async def test_small_part_of_a_large_directory_is_read_by_segments(engine: AsyncEngine) -> None:
    await execute(
        engine,
        # as if the directory were so large that a random sample finds none of the audience
        f"""INSERT INTO segment_count (operator_code, time_zone, clients, opted_out)
            VALUES ('999', 'UTC', {MAX_SCANNED_CLIENTS * 100_000}, 0)""",  # noqa: S608  # a number
    )
    await add_clients(engine, LARGE)
    sample = await do(engine, lambda db: read_fields(db, "916"))
    assert sample.audience_size == LARGE
    assert len(sample.rows) == 100


async def test_clients_are_found_by_an_index(engine: AsyncEngine) -> None:
    await add_clients(engine, 3, operator_code="903")
    plans = await plans_of(engine, lambda db: read_fields(db, "916", opted_out=False))
    assert "Seq Scan on client" not in plans[-1]


@pytest.mark.parametrize("clients", [4, LARGE])
async def test_clients_of_a_list_are_read_by_the_list(engine: AsyncEngine, clients: int) -> None:
    ids = await add_clients(engine, clients)
    await add_clients(engine, 5, operator_code="903")
    await put_on_list(engine, "spring", ids)
    await execute(engine, """UPDATE client SET fields = '{"name": "Anna"}'""")
    on_list = msgspec.convert({"lists": ["Spring"]}, ClientFilter)
    result = await reach(engine, "Dear {{ name }}", on_list)
    assert (result.clients, result.missing) == (clients, 0)
    assert result.is_estimate == (clients == LARGE)
    plans = await plans_of(engine, lambda connection: read_fields(connection, on_list))
    assert "Seq Scan on client" not in "\n".join(plans)


async def test_newer_clients_of_a_large_list_are_in_its_sample_too(engine: AsyncEngine) -> None:
    """The clients with the highest ids lack the field."""
    ids = await add_clients(engine, LARGE)
    await put_on_list(engine, "spring", ids)
    await execute(
        engine,
        f"""UPDATE client SET fields = '{{"name": "Anna"}}' WHERE id < {ids[MAX_ALL_CLIENTS]}""",  # noqa: S608  # a number
    )
    on_list = msgspec.convert({"lists": ["spring"]}, ClientFilter)
    result = await reach(engine, "Dear {{ name }}", on_list)
    assert result.is_estimate
    assert result.missing == pytest.approx(LARGE - MAX_ALL_CLIENTS, rel=0.2)
    assert 4_500 < result.read_clients < 5_500
    assert await reach(engine, "Dear {{ name }}", on_list) == result


async def test_a_reach_that_is_shown_again_is_not_read_again(engine: AsyncEngine) -> None:
    ids = await add_clients(engine, 2)

    async def missing(text: str = "{{ a }}", *, purpose: Purpose = "marketing") -> int:
        return (await recent_text_reach(engine, parse(text), None, purpose)).missing

    assert await missing() == 2
    await execute(engine, f"""UPDATE client SET fields = '{{"a": "1"}}' WHERE id = {ids[0]}""")  # noqa: S608  # a number
    assert await missing() == 2
    assert await missing("{{ a }}!") == 1
    assert await missing(purpose="service") == 1
    assert (await reach(engine, "{{ a }}")).missing == 1  # a question reads it anew
    assert await missing() == 1
    await execute(engine, "UPDATE client SET fields = '{}'")
    kept = kept_reaches(engine)
    for key, each in kept.items():
        kept[key] = each._replace(read_at=elapsed() - MAX_REACH_AGE)
    assert await missing() == 2


async def test_only_the_newest_reaches_are_kept(engine: AsyncEngine) -> None:
    [client] = await add_clients(engine, 1)
    await recent_text_reach(engine, parse("{{ a }}"), None, "service")
    for number in range(MAX_KEPT_REACHES):
        await recent_text_reach(engine, parse(f"{{{{ a }}}} {number}"), None, "service")
    await execute(engine, f"""UPDATE client SET fields = '{{"a": "1"}}' WHERE id = {client}""")  # noqa: S608  # a number
    first = await recent_text_reach(engine, parse("{{ a }}"), None, "service")
    newest = await recent_text_reach(
        engine, parse(f"{{{{ a }}}} {MAX_KEPT_REACHES - 1}"), None, "service"
    )
    assert (first.missing, newest.missing) == (0, 1)
