"""The list of gateways, with live updates, and what the pages of gateways read."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.response import ServerSentEvent
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.admin.live import LiveUpdates, Sections
from mailer.admin.render import PageContext
from mailer.gateway.channel import Channels
from mailer.gateway_control import service, store
from mailer.gateway_control.delivery import DeliveryCounts
from mailer.gateway_control.model import DeliveryByCode, GatewayDetail

SECTIONS = ("table",)
"""The section that is updated live: the name of its template, and its id in the HTML."""
MAX_CODES = 20
"""Operator codes that a table lists, those with most messages; the others are added up."""


class DeliveryTable(NamedTuple):
    """The messages that a gateway has accepted in a period, by operator code."""

    listed: Sequence[DeliveryByCode]
    others_number: int
    others: DeliveryCounts
    total: DeliveryCounts

    @classmethod
    def of(cls, codes: Sequence[DeliveryByCode]) -> "DeliveryTable":
        """Return the table of counts by operator code, those with most messages first."""
        others = codes[MAX_CODES:]
        return cls(codes[:MAX_CODES], len(others), _add_up(others), _add_up(codes))


def _add_up(codes: Sequence[DeliveryByCode]) -> DeliveryCounts:
    return sum((code.counts for code in codes), DeliveryCounts())


async def read_list(engine: AsyncEngine, channels: Channels) -> dict[str, Any]:
    """Return the template variables of the list."""
    return {"gateways": await service.list_gateways(engine, channels)}


async def read_gateway(engine: AsyncEngine, channels: Channels, name: str) -> dict[str, Any]:
    """Return the template variables of a gateway's sections; raises `GatewayNotFoundError`."""
    service.find_channel(channels, name)
    gateways = await service.list_gateways(engine, channels)
    gateway = next(gateway for gateway in gateways if gateway.name == name)
    async with engine.connect() as connection:
        deliveries = await store.count_deliveries(connection, name)
    return {
        "gateway": gateway,
        "last_day": DeliveryTable.of(deliveries.last_day),
        "last_week": DeliveryTable.of(deliveries.last_week),
        "all_accepted": sum(each.accepted for each in gateways),
        "others": [other.name for other in gateways if _can_replace(other, gateway)],
    }


def _can_replace(other: GatewayDetail, gateway: GatewayDetail) -> bool:
    """Return whether another gateway is in use for one of the operator codes of a gateway."""
    if other.name == gateway.name or other.state != "up":
        return False
    if other.operator_codes is None or gateway.operator_codes is None:
        return True
    return not set(other.operator_codes).isdisjoint(gateway.operator_codes)


def page_of(channels: Channels, name: str) -> str:
    """Return the path of a gateway's page; that of the list if it is not configured any more."""
    return "/gateways" if channels.get(name) is None else f"/gateways/{name}"


class GatewayList(Controller):
    """The list of gateways, in the order of the configuration."""

    path = "/"

    @get("/gateways", required_scope="read")
    async def list_gateways(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
    ) -> Response[str]:
        """List the gateways, and name those that messages wait for although they are removed."""
        removed = await service.list_removed_with_waiting(engine, channels)
        return await context.render_page(
            "gateways/list.html", removed=removed, **await read_list(engine, channels)
        )

    @get("/live/gateways", required_scope="read", is_polled=True)
    async def watch_gateways(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
        live: NamedDependency[LiveUpdates],
    ) -> ServerSentEvent:
        """Stream the list whenever it changes."""

        async def sections() -> Sections:
            variables = await read_list(engine, channels)
            return await context.render_sections("gateways", SECTIONS, **variables)

        return live.stream(("gateways", context.viewer), sections, context.quota_key)
