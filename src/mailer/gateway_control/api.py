"""API routes of gateways, and of the test of a mailing."""

from typing import Annotated

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.exceptions import TooManyRequestsException
from litestar.params import JSONBody, Parameter
from litestar.status_codes import HTTP_200_OK
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.clock import elapsed
from mailer.gateway.channel import Channels
from mailer.gateway_control import service
from mailer.gateway_control.model import GatewayDetail, ReleasedMessages
from mailer.gateway_control.testing import send_mailing_test
from mailer.gateway_control.testing_model import (
    MailingTest,
    MailingTestRepeatedError,
    MailingTestResults,
)
from mailer.idempotency.model import IdempotencyClaim
from mailer.limits import RateLimiter
from mailer.mailing.api import ACTION_OPTIONS, MailingId
from mailer.web.body import JsonBody

GatewayPathName = Annotated[str, Parameter(description="The gateway's name in the configuration.")]

TEST_RATE, TEST_BURST = 0.1, 60.0
"""Tests of mailings a second that a user or a key may send on average, and the seconds whose tests
may come at once: six, and then one in ten seconds."""


def check_test_rate(limiter: RateLimiter, actor: Actor) -> None:
    """Raise `TooManyRequestsException` if an actor has sent too many tests of mailings."""
    if seconds := limiter.retry_after(actor.quota_key or actor.kind, elapsed()):
        raise TooManyRequestsException(
            "Too many test messages.", headers={"Retry-After": str(seconds)}
        )


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


class MailingTestController(Controller):
    """Send a mailing to given phones as a test."""

    path = "/mailings"
    tags = ("mailings",)
    dto = JsonBody
    return_dto = None

    @post("/{mailing_id:int}/test", required_scope="write", status_code=HTTP_200_OK)
    async def test_mailing(  # noqa: PLR0913, PLR0917  # the parts of a change that is made once
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        channels: NamedDependency[Channels],
        test_rate: NamedDependency[RateLimiter],
        mailing_id: MailingId,
        data: JSONBody[MailingTest],
    ) -> MailingTestResults:
        """Send the text of a mailing to up to five phones now, before the mailing ends.

        `TEST: ` stands before the text. The messages go through the gateway and with the sender of
        the mailing. They are no messages of the mailing, and no counts and statistics include them.
        A phone that has opted out gets no marketing mailing. The answer comes when each gateway has
        answered; nothing is sent again. 429 after six tests at once, then one in ten seconds.
        """
        check_test_rate(test_rate, by)
        results = await send_mailing_test(engine, channels, mailing_id, data.phones, by, claim)
        if results is None:
            raise MailingTestRepeatedError
        return MailingTestResults(results)
