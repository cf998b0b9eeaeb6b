"""API routes of gateways."""

from typing import Annotated

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import Parameter
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.gateway.channel import Channels
from mailer.gateway_control import service
from mailer.gateway_control.model import GatewayDetail, ReleasedMessages
from mailer.idempotency.model import IdempotencyClaim
from mailer.mailing.api import ACTION_OPTIONS

GatewayPathName = Annotated[str, Parameter(description="The gateway's name in the configuration.")]


class GatewayController(Controller):
    """Read and control the gateways.

    The state, the breaker and what is measured are those of the worker that answers. A pause and
    the counts of the last 24 hours are of all workers.
    """

    path = "/gateways"
    tags = ("gateways",)

    @get(required_scope="read")
    async def list_gateways(
        self, engine: NamedDependency[AsyncEngine], channels: NamedDependency[Channels]
    ) -> list[GatewayDetail]:
        """List the gateways in the order of the configuration.

        The breaker, `failures`, `rate`, `latency` and `requests_in_flight` are those of the worker
        that answers. A pause, and the outcomes of the last 24 hours, are of all workers.
        """
        return await service.list_gateways(engine, channels)

    @get("/{name:str}", required_scope="read")
    async def get_gateway(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        name: GatewayPathName,
    ) -> GatewayDetail:
        """Return a gateway. What is of one worker and what of all is as in the list."""
        return await service.get(engine, channels, name)

    @post("/{name:str}/pause", **ACTION_OPTIONS)
    async def pause_gateway(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        channels: NamedDependency[Channels],
        name: GatewayPathName,
    ) -> GatewayDetail:
        """Pause a gateway: within a second, no worker starts a request to it.

        Its messages go to other gateways, if there are any for them. Messages whose delivery is
        unknown wait. A gateway that is paused already stays so.
        """
        return await service.pause(engine, channels, name, by, claim)

    @post("/{name:str}/resume", **ACTION_OPTIONS)
    async def resume_gateway(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        channels: NamedDependency[Channels],
        name: GatewayPathName,
    ) -> GatewayDetail:
        """Resume a paused gateway. A gateway that is not paused stays as it is."""
        return await service.resume(engine, channels, name, by, claim)

    @post("/{name:str}/release-unknown", **ACTION_OPTIONS)
    async def release_unknown(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        channels: NamedDependency[Channels],
        name: GatewayPathName,
    ) -> ReleasedMessages:
        """Let other gateways send the messages that wait for this one alone.

        They wait because delivery is unknown: this gateway may have accepted them. So clients may
        get them twice. The gateway need not be configured any more.
        """
        return ReleasedMessages(await service.release_unknown(engine, channels, name, by, claim))
