"""The cost of a mailing, before it is sent and afterwards."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.api.forms import NEW_FORM, preview_form
from tests.asgi_client import inside
from tests.factories import (
    HOUR,
    OPEN,
    UnusedGateway,
    add_clients,
    add_mailing,
    add_messages,
    channel_of,
    do,
    execute,
)

from mailer.access.model import COMMAND_LINE
from mailer.app import create_app
from mailer.forecast import cost_estimate
from mailer.forecast.cost import Cost, GatewayCost, cost_of
from mailer.gateway import routes
from mailer.gateway.channel import Channel, Channels
from mailer.gateway.router import GatewayTables
from mailer.mailing import service
from mailer.mailing.client_filter import ClientFilter
from mailer.mailing.model import NewMailing
from mailer.settings import Settings
from mailer.statistics import service as statistics

TWO_PARTS = "a" * 161


def channel(name: str, rate: float = 10, **config: Any) -> Channel:
    """Return a channel with a rate limit of `rate` messages a second."""
    return channel_of(UnusedGateway(), Settings(gateway_rate=rate), name=name, **config)


async def apply_routes(engine: AsyncEngine, channels: Channels) -> None:
    """Make the gateways of these channels take all messages, as at the start of a worker."""
    codes = {each.name: each.config.operator_codes for each in channels}
    await do(engine, lambda connection: routes.apply_routes(connection, codes))


async def estimate_cost(
    engine: AsyncEngine,
    *channels: Channel,
    client_filter: ClientFilter = None,
    own_gateway: str | None = None,
    parts: int = 1,
    paused: tuple[str, ...] = (),
) -> Cost | None:
    """Return the estimated cost of a mailing through these channels."""
    together = Channels(channels)
    together.update(GatewayTables(routes={}, paused_at=dict.fromkeys(paused, datetime.now(UTC))))
    await apply_routes(engine, together)

    async def read(connection: AsyncConnection) -> Cost | None:
        return await cost_estimate.estimate_cost(
            connection, client_filter, own_gateway, parts, together
        )

    return await do(engine, read)


async def test_a_mailing_costs_its_parts_at_the_price_of_each_gateway(engine: AsyncEngine) -> None:
    await add_clients(engine, 100, "916")
    await add_clients(engine, 30, "903")
    cost = await estimate_cost(
        engine,
        channel("main", price=0.035, order=2),
        channel("beeline", price=0.02, operator_codes=["903"]),
        parts=2,
    )
    assert cost == Cost(8.2, [GatewayCost("beeline", 60, 1.2), GatewayCost("main", 200, 7.0)])


async def test_only_clients_of_the_audience_cost_something(engine: AsyncEngine) -> None:
    await add_clients(engine, 100, "916")
    await add_clients(engine, 30, "903")
    cost = await estimate_cost(engine, channel("main", price=1), client_filter="903")
    assert cost == Cost(30, [GatewayCost("main", 30, 30)])


async def test_equal_gateways_share_messages_by_weight_or_else_by_rate(engine: AsyncEngine) -> None:
    await add_clients(engine, 100)
    by_weight = await estimate_cost(
        engine, channel("a", price=1, weight=3), channel("b", price=2, weight=1)
    )
    assert by_weight == Cost(125, [GatewayCost("a", 75, 75), GatewayCost("b", 25, 50)])
    by_rate = await estimate_cost(
        engine, channel("a", rate=10, price=1), channel("b", rate=40, price=2)
    )
    assert by_rate == Cost(180, [GatewayCost("a", 20, 20), GatewayCost("b", 80, 160)])
    equally = await estimate_cost(
        engine, channel("a", rate=0, price=1), channel("b", rate=40, price=2)
    )
    assert equally == Cost(150, [GatewayCost("a", 50, 50), GatewayCost("b", 50, 100)])


async def test_a_mailing_with_a_gateway_of_its_own_costs_that_gateways_price(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 10)
    gateways = channel("a", price=1), channel("b", price=2)
    cost = await estimate_cost(engine, *gateways, own_gateway="b")
    assert cost == Cost(20, [GatewayCost("b", 10, 20)])
    removed = await estimate_cost(engine, *gateways, own_gateway="removed")
    assert removed == Cost(0, [])


async def test_gateways_that_are_out_cost_something_only_if_no_other_is_usable(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 10)
    gateways = channel("first", price=1), channel("spare", price=2, order=2)
    cost = await estimate_cost(engine, *gateways, paused=("first",))
    assert cost == Cost(20, [GatewayCost("spare", 10, 20)])
    cost = await estimate_cost(engine, *gateways, paused=("first", "spare"))
    assert cost == Cost(10, [GatewayCost("first", 10, 10)])


async def test_without_a_price_the_cost_is_not_known(engine: AsyncEngine) -> None:
    await add_clients(engine, 10, "916")
    await add_clients(engine, 10, "903")
    assert await estimate_cost(engine, channel("main")) is None
    partly = await estimate_cost(
        engine, channel("main", order=2), channel("b", price=1, operator_codes=["903"])
    )
    assert partly == Cost(None, [GatewayCost("b", 10, 10), GatewayCost("main", 10, None)])


def test_the_cost_of_parts_is_null_where_no_price_is_configured() -> None:
    priced, unpriced = channel("priced", price=0.1), channel("unpriced")
    assert cost_of({}, Channels()) == Cost(None, [])
    assert cost_of({"priced": 0}, Channels([priced])) == Cost(0, [])
    assert cost_of({"priced": 3}, Channels([priced, unpriced])) == Cost(
        0.3, [GatewayCost("priced", 3, 0.3)]
    )
    assert cost_of({"priced": 3, "removed": 1}, Channels([priced])) == Cost(
        None, [GatewayCost("priced", 3, 0.3), GatewayCost("removed", 1, None)]
    )


# ---- where it is shown -----------------------------------------------------------------------


async def test_the_statistics_of_a_mailing_have_the_cost_of_its_accepted_parts(
    engine: AsyncEngine,
) -> None:
    clients = await add_clients(engine, 6)
    mailing_id = await add_mailing(engine, clients=6, start=datetime.now(UTC))
    await add_messages(engine, mailing_id, clients[:2], "delivered")
    await add_messages(engine, mailing_id, clients[2:3], "sent")
    await add_messages(engine, mailing_id, clients[3:4], "undelivered", "not_delivered")
    await add_messages(engine, mailing_id, clients[4:], "undelivered", "rejected_400")
    await execute(
        engine,
        "UPDATE message SET gateway = 'main'",
        "UPDATE message SET parts = 2 WHERE reason IS DISTINCT FROM 'rejected_400'",
        f"UPDATE message SET gateway = 'spare' WHERE client_id = {clients[0]}",  # noqa: S608  # a number
    )
    channels = Channels([channel("main", price=0.5), channel("spare", price=3)])
    result = await statistics.of_mailing(engine, mailing_id, channels=channels)
    assert result.cost == Cost(9, [GatewayCost("main", 6, 3), GatewayCost("spare", 2, 6)])


async def read_page(engine: AsyncEngine, channels: Channels, path: str) -> str:
    """Return the text of a page."""
    app = create_app(engine, channels, settings=OPEN)
    async with httpx.AsyncClient(transport=inside(app), base_url="http://mailer") as client:
        return " ".join((await client.get(path)).text.split())


@pytest.mark.parametrize(
    ("price", "figures"),
    [
        (0.5, "cost 1,600.00 cost through a 100.00 cost through b 1,500.00"),
        (None, "cost \u2013 cost through a \u2013 cost through b 1,500.00"),
    ],
)
async def test_the_preview_shows_the_expected_cost_in_all_and_by_gateway(
    engine: AsyncEngine, price: float | None, figures: str
) -> None:
    await add_clients(engine, 100, "916")
    await add_clients(engine, 250, "903")
    channels = Channels(
        [channel("a", price=price, order=2), channel("b", price=3, operator_codes=["903"])]
    )
    await apply_routes(engine, channels)
    app = create_app(engine, channels, settings=OPEN)
    async with httpx.AsyncClient(transport=inside(app)) as client:
        preview = await preview_form(client, NEW_FORM | {"text": TWO_PARTS})
        without_text = await preview_form(client, NEW_FORM | {"text": ""})
    assert figures in preview
    assert "cost" not in without_text


async def test_without_prices_no_cost_is_shown(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 3)
    mailing_id = await add_mailing(engine, clients=3, start=datetime.now(UTC))
    await add_messages(engine, mailing_id, clients, "delivered", at=datetime.now(UTC))
    channels = Channels([channel("default")])
    app = create_app(engine, channels, settings=OPEN)
    async with httpx.AsyncClient(transport=inside(app)) as client:
        assert "cost" not in await preview_form(client, NEW_FORM)
    assert "<dt>cost" not in await read_page(engine, channels, f"/mailings/{mailing_id}")


async def test_the_page_of_a_mailing_shows_what_it_will_cost_and_what_it_has_cost(
    engine: AsyncEngine,
) -> None:
    channels = Channels([channel("default", price=2)])
    clients = await add_clients(engine, 3)
    start = datetime.now(UTC) + HOUR
    upcoming = await service.create(
        engine,
        NewMailing(datetime_start=start, datetime_end=start + HOUR, text=TWO_PARTS),
        COMMAND_LINE,
    )
    page = await read_page(engine, channels, f"/mailings/{upcoming.id}")
    assert "Expected cost: 12.00" in page

    started = await add_mailing(engine, clients=3, start=datetime.now(UTC))
    await add_messages(engine, started, clients, "delivered", at=datetime.now(UTC))
    await execute(engine, "UPDATE message SET gateway = 'default', parts = 1")
    page = await read_page(engine, channels, f"/mailings/{started}")
    assert "<dt>cost</dt><dd>6.00</dd>" in page
    assert "cost through" not in page
    assert "Expected cost" not in page
