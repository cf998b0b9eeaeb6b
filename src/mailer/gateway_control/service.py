"""Use cases of gateways: list, pause and resume them, release their messages, send a test.

Each change writes its audit log entry in the transaction that makes the change.
"""

from collections.abc import Awaitable, Callable

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor
from mailer.gateway import routes
from mailer.gateway.channel import Channel, Channels
from mailer.gateway.protocol import Outcome
from mailer.gateway.single_message import send_single, single_message
from mailer.gateway.status import status_of
from mailer.gateway_control import store
from mailer.gateway_control.model import (
    GatewayDetail,
    GatewayNotFoundError,
    GatewayOutcomes,
)
from mailer.gateway_control.testing_model import SingleMessage
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim
from mailer.mailing.store import notify_mailings_changed

log = structlog.get_logger()

RELEASE_BATCH = 5_000
"""Messages that one transaction releases."""
MAX_RELEASE_BATCHES = 200
"""Most transactions of one release. If more than a million messages wait, the rest keep waiting."""
MAX_COUNTED_WAITING = 10_000
"""Most messages that are counted before a release."""


def find_channel(channels: Channels, name: str) -> Channel:
    """Return the channel of a gateway; raises `GatewayNotFoundError`."""
    channel = channels.get(name)
    if channel is None:
        raise GatewayNotFoundError
    return channel


async def list_gateways(engine: AsyncEngine, channels: Channels) -> list[GatewayDetail]:
    """Return all configured gateways, in the order of the configuration."""
    async with engine.connect() as connection:
        pauses = await store.read_pauses(connection)
        counts = await store.count_last_24_hours(connection)
    return [
        GatewayDetail.of(
            status_of(channel, pauses.get(channel.name)),
            counts.get(channel.name, GatewayOutcomes()),
        )
        for channel in channels
    ]


async def get(engine: AsyncEngine, channels: Channels, name: str) -> GatewayDetail:
    """Return a configured gateway; raises `GatewayNotFoundError`."""
    find_channel(channels, name)
    gateways = await list_gateways(engine, channels)
    return next(gateway for gateway in gateways if gateway.name == name)


async def pause(
    engine: AsyncEngine,
    channels: Channels,
    name: str,
    actor: Actor,
    claim: IdempotencyClaim | None = None,
) -> GatewayDetail:
    """Pause a gateway: within a second, no worker starts a request to it.

    Nothing is done if it is paused already. Raises `GatewayNotFoundError`.
    """
    find_channel(channels, name)

    async def work(connection: AsyncConnection) -> bool:
        return await routes.pause(connection, name, actor.name)

    await _change(engine, name, actor, claim, "gateway_paused", work)
    return await get(engine, channels, name)


async def resume(
    engine: AsyncEngine,
    channels: Channels,
    name: str,
    actor: Actor,
    claim: IdempotencyClaim | None = None,
) -> GatewayDetail:
    """Resume a paused gateway. Nothing is done if it is not paused.

    Raises `GatewayNotFoundError`.
    """
    find_channel(channels, name)

    async def work(connection: AsyncConnection) -> bool:
        return await routes.resume(connection, name)

    await _change(engine, name, actor, claim, "gateway_resumed", work)
    return await get(engine, channels, name)


async def _change(  # noqa: PLR0913, PLR0917  # the parts of a change that is made once
    engine: AsyncEngine,
    name: str,
    actor: Actor,
    claim: IdempotencyClaim | None,
    action: str,
    work: Callable[[AsyncConnection], Awaitable[bool]],
) -> None:
    """Change a gateway once, record that and notify all workers, if `work` returns True."""

    async def change_and_record(connection: AsyncConnection) -> bool:
        has_changed = await work(connection)
        if has_changed:
            await _record(connection, actor, action, name)
            await notify_mailings_changed(connection)  # workers read the pauses, too
        return has_changed

    async with engine.begin() as connection:
        done = await do_once(
            connection,
            claim,
            lambda: change_and_record(connection),
            result_of=lambda has_changed: {"has_changed": has_changed},
        )
    if done.value:
        log.info(action, gateway=name)


async def count_waiting(engine: AsyncEngine, channels: Channels, name: str) -> int:
    """Return how many messages wait for a gateway alone because delivery is unknown.

    At most `MAX_COUNTED_WAITING` are counted. The gateway need not be configured any more. Raises
    `GatewayNotFoundError`.
    """
    async with engine.connect() as connection:
        route = await _find_single_route(connection, channels, name)
        if route is None:
            return 0
        return len(await store.find_waiting(connection, route, MAX_COUNTED_WAITING))


async def list_removed_with_waiting(engine: AsyncEngine, channels: Channels) -> list[str]:
    """Return the gateways that are not configured any more and for which messages still wait."""
    async with engine.connect() as connection:
        single_routes = await store.read_single_routes(connection)
        return [
            name
            for name, route in sorted(single_routes.items())
            if channels.get(name) is None and await store.find_waiting(connection, route, chunk=1)
        ]


async def release_unknown(
    engine: AsyncEngine,
    channels: Channels,
    name: str,
    actor: Actor,
    claim: IdempotencyClaim | None = None,
) -> int:
    """Let other gateways send the messages that wait for one alone; return how many.

    They wait because delivery by that gateway is unknown, so clients may get them twice. The
    gateway need not be configured any more. Raises `GatewayNotFoundError`.
    """
    async with engine.begin() as connection:
        route = await _find_single_route(connection, channels, name)
        await do_once(
            connection,
            claim,
            lambda: _record(connection, actor, "unknown_released", name),
            result_of=lambda gateway: {"gateway": gateway},
        )
    released = 0 if route is None else await release_all(engine, route)
    log.info("unknown_released", gateway=name, messages=released)
    return released


async def release_all(engine: AsyncEngine, route: int, *, batch: int = RELEASE_BATCH) -> int:
    """Release the messages of a route of which delivery is unknown, `batch` in a transaction.

    Return how many were released.
    """
    released, position = 0, store.FIRST
    for _ in range(MAX_RELEASE_BATCHES):
        async with engine.begin() as connection:
            found = await store.find_waiting(connection, route, batch, position)
            if not found:
                break
            released += await store.release(connection, route, found)
        position = found[-1]
    return released


async def _find_single_route(
    connection: AsyncConnection, channels: Channels, name: str
) -> int | None:
    """Return the route of a gateway alone; None if no message has ever had it.

    Raises `GatewayNotFoundError` if the gateway is neither configured nor has such a route.
    """
    route = (await store.read_single_routes(connection)).get(name)
    if route is None:
        find_channel(channels, name)
    return route


async def send_test(
    engine: AsyncEngine,
    channel: Channel,
    message: SingleMessage,
    actor: Actor,
    claim: IdempotencyClaim | None = None,
) -> Outcome | None:
    """Send a message through a gateway now, also while it is out or paused; it is not counted.

    Neither the phone nor the text is recorded. Return None if an earlier attempt of the request
    may have sent it.
    """
    async with engine.begin() as connection:
        done = await do_once(
            connection, claim, lambda: _record(connection, actor, "gateway_tested", channel.name)
        )
    if done.is_repeat:
        return None
    outcome = await send_single(
        channel.configured,
        single_message(channel.configured, message.phone, message.text),
        channel.limits.timeout,
    )
    log.info("gateway_tested", gateway=channel.name, outcome=type(outcome).__name__)
    return outcome


async def _record(connection: AsyncConnection, actor: Actor, action: str, name: str) -> str:
    """Write an audit log entry about a gateway, and return the gateway's name."""
    target = audit.Target("gateway")
    await audit.record(connection, actor, action, target, after={"gateway": name})
    return name
