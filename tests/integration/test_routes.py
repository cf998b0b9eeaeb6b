"""The route of a message: which gateways may take it, also after gateways have changed."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import (
    add_clients,
    add_due_messages,
    advance,
    execute,
    rows,
    start_and_enqueue,
    value,
)

from mailer.access.model import COMMAND_LINE
from mailer.dispatch.route_update import RouteUpdate
from mailer.errors import InvalidError
from mailer.gateway import routes
from mailer.gateway.channel import Channels
from mailer.gateway.opening import open_channels
from mailer.mailing import service
from mailer.mailing.model import MailingChange, NewMailing
from mailer.settings import Settings

Codes = Mapping[str, Iterable[str] | None]

NOW = datetime.now(UTC)


async def apply(engine: AsyncEngine, codes: Codes) -> bool:
    async with engine.begin() as connection:
        return await routes.apply_routes(connection, codes)


async def create(engine: AsyncEngine, gateway: str | None = None) -> int:
    """Create a mailing to everybody that is due now; return its id."""
    new = NewMailing(
        datetime_start=NOW - timedelta(hours=1),
        datetime_end=NOW + timedelta(hours=1),
        text="Hello",
        gateway=gateway,
    )
    return (await service.create(engine, new, COMMAND_LINE)).id


async def gateways_of_messages(engine: AsyncEngine) -> dict[str, list[str]]:
    """Return the gateways of the messages' routes, by operator code."""
    found = await rows(
        engine,
        "SELECT DISTINCT operator_code, gateways FROM message JOIN route ON route.id = route",
    )
    by_code = {row["operator_code"]: row["gateways"] for row in found}
    assert len(by_code) == len(found), "messages of one operator code have one route"
    return by_code


@pytest.mark.parametrize(
    ("codes", "by_code"),
    [
        ({}, {"": set()}),
        ({"a": None}, {"": {"a"}}),
        ({"a": None, "b": ["903"]}, {"": {"a"}, "903": {"a", "b"}}),
        ({"a": ["912"], "b": ["903", "912"]}, {"": set(), "912": {"a", "b"}, "903": {"b"}}),
    ],
)
def test_routes_by_operator_code(codes: Codes, by_code: dict[str, set[str]]) -> None:
    assert routes.routes_by_code(codes) == by_code


async def test_applying_the_same_gateways_again_changes_nothing(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 1)
    cursor = f"SELECT cursor FROM rerouting WHERE mailing_id = {mailing_id}"  # noqa: S608  # a number
    assert not await apply(engine, {"default": None})  # as after the migration
    assert await value(engine, "SELECT count(*) FROM rerouting") == 0
    assert await apply(engine, {"a": None, "b": ["916"]})
    assert await value(engine, cursor) == 0
    assert not await apply(engine, {"b": ["916"], "a": None})


async def test_gateway_names_are_those_of_the_newest_configuration(engine: AsyncEngine) -> None:
    await apply(engine, {"a": None, "b": ["916"]})
    await apply(engine, {"b": ["916"], "c": ["903"]})
    async with engine.connect() as connection:
        assert await routes.gateway_names(connection) == ["b", "c"]


@pytest.mark.parametrize("count", [3, 700])  # a small audience, and one enqueued in chunks
async def test_enqueued_messages_have_the_route_of_their_operator_code(
    engine: AsyncEngine, count: int
) -> None:
    await apply(engine, {"all": None, "beeline": ["903"]})
    await add_clients(engine, count, operator_code="903")
    await add_clients(engine, count, operator_code="916")
    await create(engine)
    await start_and_enqueue(engine)
    assert await gateways_of_messages(engine) == {"903": ["all", "beeline"], "916": ["all"]}


@pytest.mark.parametrize("count", [3, 700])
async def test_gateway_of_the_mailing_takes_all_its_messages(
    engine: AsyncEngine, count: int
) -> None:
    await apply(engine, {"all": None, "beeline": ["903"]})
    await add_clients(engine, count, operator_code="916")
    await create(engine, gateway="beeline")
    await start_and_enqueue(engine)
    assert await gateways_of_messages(engine) == {"916": ["beeline"]}


async def test_mailing_with_an_unknown_gateway_is_refused(engine: AsyncEngine) -> None:
    with pytest.raises(InvalidError) as caught:
        await create(engine, gateway="nobody")
    [error] = caught.value.errors
    assert (error.field, error.message) == ("gateway", "must be one of: default")


async def test_scheduled_messages_follow_new_gateways(engine: AsyncEngine) -> None:
    await add_due_messages(engine, 3)
    await apply(engine, {"new": None})
    await advance(engine)
    assert await gateways_of_messages(engine) == {"916": ["new"]}
    assert await value(engine, "SELECT count(*) FROM rerouting") == 0


async def test_message_with_delivery_unknown_stays_with_its_gateway(engine: AsyncEngine) -> None:
    await add_due_messages(engine, 2)
    await execute(
        engine,
        "UPDATE message SET unknown_reason = 'timeout', gateway = 'default' WHERE id = 1",
    )
    await apply(engine, {"new": None})
    await advance(engine)
    found = await rows(
        engine, "SELECT gateways FROM message JOIN route ON route.id = route ORDER BY message.id"
    )
    assert [row["gateways"] for row in found] == [["default"], ["new"]]


async def test_change_of_the_gateway_of_a_running_mailing_moves_its_messages(
    engine: AsyncEngine,
) -> None:
    await apply(engine, {"a": None, "b": None})
    mailing_id = await add_due_messages(engine, 3)
    await service.change(engine, mailing_id, MailingChange(gateway="b"), COMMAND_LINE)
    await advance(engine)
    assert await gateways_of_messages(engine) == {"916": ["b"]}
    await service.change(engine, mailing_id, MailingChange(gateway=None), COMMAND_LINE)
    await advance(engine)
    assert await gateways_of_messages(engine) == {"916": ["a", "b"]}


async def test_retried_messages_get_the_gateways_of_now(engine: AsyncEngine) -> None:
    mailing_id = await add_due_messages(engine, 2)
    await execute(engine, "UPDATE message SET status = 'undelivered', reason = 'rejected_400'")
    await apply(engine, {"new": None})
    await advance(engine)
    await service.retry(engine, mailing_id, COMMAND_LINE)
    await advance(engine)
    assert await gateways_of_messages(engine) == {"916": ["new"]}


async def test_paused_gateways_are_read_with_the_routes(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        assert await routes.pause(connection, "default", "somebody")
        assert not await routes.pause(connection, "default", "somebody else")
    async with engine.begin() as connection:
        assert await routes.resume(connection, "default")
        assert not await routes.resume(connection, "default")


async def test_a_reload_applies_the_routes_again_after_another_worker_has_changed_them(
    engine: AsyncEngine,
) -> None:
    file = Settings(gateway_url="http://127.0.0.1/")
    channels = Channels(open_channels(file, {}, Channels()))
    update = RouteUpdate(engine, channels)
    await update.run()
    await apply(engine, {"other": None})

    await update.run()
    async with engine.connect() as connection:
        assert await routes.gateway_names(connection) == ["other"]

    channels.replace(open_channels(file, {}, channels))
    await update.run()
    async with engine.connect() as connection:
        assert await routes.gateway_names(connection) == ["default"]
