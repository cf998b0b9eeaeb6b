"""Gateways that send no receipts are asked for them, over real sockets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import UnusedGateway, execute, state, value
from tests.integration.test_receipts import add_sent, assert_counts_agree

from mailer.gateway.channel import Channel, ChannelLimits, Channels
from mailer.gateway.config import ConfiguredGateway
from mailer.gateway.config_table import GatewayConfig
from mailer.gateway.profile_file import load_profile
from mailer.gateway.protocol import ReceiptUse
from mailer.receipt.inbox import Inbox
from mailer.receipt.polling import Polling
from mailer.reply.rules import ReplyRules
from mailer.settings import Settings
from mailer.urls import read_gateway_url

BATCH = 100
"""Messages in a request to SMS.ru."""
START_ROUND = """
    INSERT INTO receipt_poll (gateway, round_started_at)
    SELECT name, now() - interval '1 hour' FROM unnest(ARRAY['default', 'other']) AS name
    ON CONFLICT (gateway) DO UPDATE SET round_started_at = excluded.round_started_at"""
"""Lets the next run start a round, as half a minute later."""


class Provider:
    """SMS.ru: says which messages were delivered, and records for which it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        ids = str((await request.post())["sms_id"]).split(",")
        self.asked += ids
        return web.json_response(
            {"status": "OK", "sms": {id_: {"status_code": 103} for id_ in ids}}
        )


def create_polling(engine: AsyncEngine, url: str, name: str = "default") -> Polling:
    config = GatewayConfig(name=name, kind="smsru", token="t")  # noqa: S106  # no real secret
    configured = ConfiguredGateway(config, load_profile("smsru"), read_gateway_url(url))
    channel = Channel(UnusedGateway(), configured, ChannelLimits.of(configured, Settings()))
    channel.receipts = ReceiptUse(is_awaited=True)
    return Polling(engine, Channels([channel]), Inbox(engine, ReplyRules.of(Settings())))


@asynccontextmanager
async def running(provider: Provider) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/sms/status", provider.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_gateway_is_asked_once_a_round_for_each_receipt_that_is_awaited(
    engine: AsyncEngine,
) -> None:
    _, ids = await add_sent(engine, BATCH + 1)
    provider = Provider()
    async with running(provider) as url:
        poll = create_polling(engine, url)
        await execute(engine, START_ROUND)
        await poll.run()
        assert sorted(provider.asked) == sorted(f"m{id_}" for id_ in ids)
        assert await value(
            engine, "SELECT count(*) FROM message WHERE status = 'delivered'"
        ) == len(ids)
        _, [late_id] = await add_sent(engine)
        await poll.run()  # ends the round
        await poll.run()  # too early for the next one
        await execute(engine, START_ROUND)
        await poll.run()
        assert (await state(engine, late_id))[0] == "delivered"
    await assert_counts_agree(engine)


async def test_gateway_is_not_asked_for_messages_of_others(engine: AsyncEngine) -> None:
    await add_sent(engine)
    await execute(engine, START_ROUND)
    provider = Provider()
    async with running(provider) as url:
        await create_polling(engine, url, name="other").run()
    assert provider.asked == []


async def test_messages_are_asked_for_again_when_the_gateway_does_not_answer(
    engine: AsyncEngine,
) -> None:
    _, [message_id] = await add_sent(engine)
    await execute(engine, START_ROUND)
    await create_polling(engine, "http://127.0.0.1:1").run()
    assert await value(engine, "SELECT message_id FROM receipt_poll WHERE gateway = 'default'")
    provider = Provider()
    async with running(provider) as url:
        poll = create_polling(engine, url)
        await poll.run()
        await execute(engine, START_ROUND)
        await poll.run()
    assert (await state(engine, message_id))[0] == "delivered"
