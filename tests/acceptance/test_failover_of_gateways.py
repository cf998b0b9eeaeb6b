"""The first of two gateways dies, comes back, loses its credit, and gets credit again."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
from aiohttp import web
from tests.processes import MailerProcess, Mailers, until_true

from mailer.sample_data import new_mailing

CLIENTS = 20_000
STEP = 2_000
"""Messages that a gateway must accept before the next event."""
CONCURRENCY = 25
FILE = """
[[gateway]]
name = "vonage"
kind = "vonage"
url = "{first}"
account = "key"
token = "file:secret"
sender = "Acme"
order = 1
concurrency = {concurrency}

[[gateway]]
name = "kannel"
kind = "kannel"
url = "{second}"
username = "mailer"
password = "sesame"
sender = "Acme"
order = 2
concurrency = {concurrency}
"""
GATEWAYS_OF_CLIENTS = """
    SELECT json_object_agg(client.phone, message.gateway)::text
    FROM message JOIN client ON client.id = client_id WHERE status = 'delivered'"""
COUNT_REPEATED = "SELECT count(*) FROM message WHERE attempts > 1"


class Provider:
    """The side of a provider: it accepts messages, and can be stopped or lose its credit."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        """The number of requests for each phone."""
        self.accepted: Counter[str] = Counter()
        """The number of responses that accepted a message, for each phone."""
        self.has_credit = True
        self.port = 0
        self._runner: web.ServerRunner | None = None

    async def start(self) -> None:
        """Listen; again on the same port after a stop."""
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = int(site.name.rpartition(":")[2])

    async def die(self) -> None:
        """Abort all requests, and listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        fields = {**request.query, **await request.post()}
        phone = str(fields["to"]).removeprefix("+")
        self.requests[phone] += 1
        await asyncio.sleep(0.02)
        if not self.has_credit:
            return self.refusal()
        self.accepted[phone] += 1
        return self.acceptance(phone)

    def acceptance(self, phone: str) -> web.Response:
        raise NotImplementedError

    def refusal(self) -> web.Response:
        raise NotImplementedError

    async def until_accepted(self, count: int) -> None:
        """Wait until it has accepted `count` messages in all."""

        async def has_accepted() -> bool:
            return self.accepted.total() >= count

        await until_true(has_accepted)


class Vonage(Provider):
    def acceptance(self, phone: str) -> web.Response:
        part = {"to": phone, "message-id": f"V{phone}", "status": "0"}
        return web.json_response({"message-count": "1", "messages": [part]})

    def refusal(self) -> web.Response:
        part = {"status": "9", "error-text": "Quota Exceeded - rejected"}
        return web.json_response({"message-count": "1", "messages": [part]})


class Kannel(Provider):
    def acceptance(self, phone: str) -> web.Response:  # noqa: ARG002  # it gives no ids
        return web.Response(status=202, text="0: Accepted for delivery")


@asynccontextmanager
async def providers() -> AsyncIterator[tuple[Vonage, Kannel]]:
    async with AsyncExitStack() as stack:
        first, second = Vonage(), Kannel()
        for provider in (first, second):
            await provider.start()
            stack.push_async_callback(provider.die)
        yield first, second


async def until_out(mailer: MailerProcess, reason: str) -> None:
    """Wait until the breaker of the first gateway has opened for a reason."""

    async def has_opened() -> bool:
        return any(
            (event["event"], event.get("gateway"), event.get("reason"))
            == ("breaker_opened", "vonage", reason)
            for event in mailer.events
        )

    await until_true(has_opened)


async def test_messages_go_around_a_gateway_that_dies_and_one_without_credit(
    start_mailer: Mailers, tmp_path: Path
) -> None:
    async with providers() as (first, second):
        file = tmp_path / "gateways.toml"
        urls = [f"http://127.0.0.1:{provider.port}" for provider in (first, second)]
        (tmp_path / "secret").write_text("sesame\n")
        file.write_text(FILE.format(first=urls[0], second=urls[1], concurrency=CONCURRENCY))
        mailer = await start_mailer(
            gateways=str(file), breaker_reset="0.3", retry_base="0.1", retry_cap="0.5"
        )
        await mailer.create_clients(CLIENTS)
        created = await mailer.call("POST", "/mailings", new_mailing(), 201)

        await first.until_accepted(STEP)
        assert not second.requests
        await first.die()
        await second.until_accepted(STEP)
        await first.start()
        await first.until_accepted(first.accepted.total() + STEP)
        first.has_credit = False
        await until_out(mailer, "no_credit")
        await second.until_accepted(second.accepted.total() + STEP)
        first.has_credit = True
        await first.until_accepted(first.accepted.total() + STEP)
        mailing = await mailer.finished(created["id"])

    assert mailing["delivered_messages"] == CLIENTS
    # nothing lost, and nothing sent through both gateways
    assert not first.accepted.keys() & second.accepted.keys()
    assert len(first.accepted) + len(second.accepted) == CLIENTS
    # sent twice: only what was in flight when the first gateway died, and only through that gateway
    assert set(second.accepted.values()) == {1}
    repeated = [phone for phone, count in first.accepted.items() if count > 1]
    assert len(repeated) <= CONCURRENCY
    # neither the dead gateway nor the missing credit has cost a message an attempt
    assert await mailer.query(COUNT_REPEATED) <= CONCURRENCY
    await assert_gateways(mailer, first, second)
    assert await mailer.stop(signal.SIGTERM) == 0


async def assert_gateways(mailer: MailerProcess, first: Provider, second: Provider) -> None:
    """Assert that the gateway of each message is the one that has accepted it."""
    gateways = msgspec.json.decode(await mailer.query(GATEWAYS_OF_CLIENTS))
    expected = dict.fromkeys(first.accepted, "vonage") | dict.fromkeys(second.accepted, "kannel")
    assert gateways == expected
