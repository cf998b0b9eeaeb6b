"""The URLs that providers call: authentication, limits, answers, and what is stored."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from litestar.types import ASGIApp
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.asgi_client import inside
from tests.factories import UnusedGateway, add_clients, add_mailing, add_messages, execute, value
from tests.served import listening

from mailer import metrics
from mailer.clock import database_clock
from mailer.errors import UnavailableError
from mailer.gateway.callback import Callback, CallbackContent
from mailer.gateway.channel import Channel, ChannelLimits, Channels
from mailer.gateway.config import read_gateways
from mailer.gateway.signatures import sign
from mailer.receipt.calls import CALL_PREFIX, MAX_CALLBACK_BYTES, ProviderCalls
from mailer.receipt.inbox import Inbox
from mailer.reply.rules import ReplyRules
from mailer.settings import Settings
from mailer.web.asgi_wrappers import wrap_asgi
from mailer.web.server.direct import DirectAnswers
from mailer.web.startup_gate import Startup

RULES = ReplyRules.of(Settings())
PUBLIC_URL = "https://sms.example.com/mailer"
SECRET, OLD_SECRET = "a-secret-of-20-chars", "an-older-secret-here"
GATEWAYS = f"""
[[gateway]]
name = "kannel"
kind = "kannel"
url = "http://127.0.0.1:13013"
username = "u"
password = "p"
callback_secret = "{SECRET}"
previous_callback_secret = "{OLD_SECRET}"

[[gateway]]
name = "without-secret"
kind = "kannel"
url = "http://127.0.0.1:13013"
username = "u"
password = "p"

[[gateway]]
name = "twilio"
kind = "twilio"
account = "AC1"
token = "token-of-twilio"
sender = "Shop"
"""


@pytest.fixture
def channels(tmp_path: Path) -> Channels:
    """The channels of a gateway with a secret in its URL, and of one that signs."""
    path = tmp_path / "gateways.toml"
    path.write_text(GATEWAYS)
    settings = Settings()
    return Channels(
        Channel(UnusedGateway(), gateway, ChannelLimits.of(gateway, settings))
        for gateway in read_gateways(path, {})
    )


def in_front_of_application(calls: ProviderCalls) -> ASGIApp:
    return wrap_asgi(not_found, ["10.0.0.1"], is_auth_enabled=True, intercept=calls.before)


class Calls:
    """Calls of providers: to the application inside all wrappers, or to the server at `port`."""

    def __init__(self, calls: ProviderCalls, port: int | None = None) -> None:
        transport = None
        if port is None:
            transport = inside(in_front_of_application(calls), client=("203.0.113.9", 1))
        base_url = f"http://127.0.0.1:{port}" if port else "http://internal:8000"
        self.client = httpx.AsyncClient(transport=transport, base_url=base_url)

    async def kannel(
        self, message_id: int, status: int = 1, secret: str = SECRET, path: str = "receipts"
    ) -> httpx.Response:
        """Report the status of a message as Kannel does."""
        query = f"secret={secret}&message={message_id}&status={status}"
        return await self.client.get(f"/gateways/kannel/{path}?{query}")

    async def twilio(self, url: str, signed: str | None = None, **fields: str) -> httpx.Response:
        """Report the status of a message as Twilio does; it signs the URL `signed`."""
        headers = {"content-type": "application/x-www-form-urlencoded"}
        body = urlencode(fields).encode()
        callback = Callback("POST", f"{PUBLIC_URL}{signed or url}", headers, body)
        headers = dict(sign("twilio", callback, "token-of-twilio", database_clock.now()).headers)
        return await self.client.post(url, content=body, headers=headers)


async def not_found(_scope: object, _receive: object, send: object) -> None:
    """Answer 404, as the application behind does."""
    await send({"type": "http.response.start", "status": 404, "headers": []})  # type: ignore[operator]
    await send({"type": "http.response.body", "body": b"behind"})  # type: ignore[operator]


@pytest.fixture(params=["application", "server"])
async def calls(
    engine: AsyncEngine, channels: Channels, request: pytest.FixtureRequest
) -> AsyncIterator[Calls]:
    """Calls to the application, or to a server that answers them directly if it can."""
    provider_calls = ProviderCalls(channels, Inbox(engine, RULES), Startup(), PUBLIC_URL)
    async with contextlib.AsyncExitStack() as stack:
        port = None
        if request.param == "server":
            direct = DirectAnswers(CALL_PREFIX, provider_calls.answer_directly)
            app = in_front_of_application(provider_calls)
            port = await stack.enter_async_context(listening(app, direct_answers=direct))
        calls = Calls(provider_calls, port)
        await stack.enter_async_context(calls.client)
        yield calls


@pytest.fixture
async def sent(engine: AsyncEngine) -> int:
    """The id of a message that awaits a receipt of any gateway."""
    mailing_id = await add_mailing(engine, clients=1)
    await add_messages(engine, mailing_id, await add_clients(engine, 1), "sent")
    return int(await value(engine, "SELECT id FROM message"))


def refused_calls() -> float:
    """Return how many calls of `kannel` were refused, as the metrics say."""
    labels = {"gateway": "kannel", "result": "not_authentic"}
    return metrics.REGISTRY.get_sample_value("mailer_callbacks_total", labels) or 0.0


async def status(engine: AsyncEngine) -> str:
    return str(await value(engine, "SELECT status FROM message"))


@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
@pytest.mark.parametrize("path", ["receipts", "inbound", "receipts/"])
async def test_call_with_one_of_the_secrets_is_stored_before_it_is_answered(
    engine: AsyncEngine, calls: Calls, sent: int, secret: str, path: str
) -> None:
    response = await calls.kannel(sent, secret=secret, path=path)
    assert response.status_code == 200
    assert await status(engine) == "delivered"


@pytest.mark.parametrize("secret", ["", "wrong", SECRET[:-1], f"{SECRET}x", SECRET.upper()])
async def test_call_with_a_wrong_secret_is_refused_and_nothing_is_stored(
    engine: AsyncEngine, calls: Calls, sent: int, secret: str
) -> None:
    refused = refused_calls()
    response = await calls.kannel(sent, secret=secret)
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"
    assert await status(engine) == "sent"
    assert refused_calls() == refused + 1


async def test_call_without_a_secret_is_refused(calls: Calls, sent: int) -> None:
    response = await calls.client.get(f"/gateways/kannel/receipts?message={sent}&status=1")
    assert response.status_code == 401


async def test_signature_is_made_over_the_public_url_and_not_over_that_behind_the_proxy(
    engine: AsyncEngine, calls: Calls, sent: int
) -> None:
    url = f"/gateways/twilio/receipts?message={sent}"
    fields = {"MessageSid": "SM1", "MessageStatus": "delivered"}
    assert (await calls.twilio(url, signed=f"{url}1", **fields)).status_code == 401
    assert await status(engine) == "sent"
    assert (await calls.twilio(url, **fields)).status_code == 200
    assert await status(engine) == "delivered"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/gateways/unknown/receipts", 404),
        ("GET", "/gateways/without-secret/receipts", 404),
        ("POST", "/gateways/kannel/receipts", 405),
        ("DELETE", "/gateways/twilio/receipts", 405),
        ("GET", "/gateways/kannel/receipts/more", 404),
        ("GET", "/gateways/kannel", 404),
    ],
)
async def test_call_of_another_url_or_method_is_refused(
    calls: Calls, method: str, path: str, expected: int
) -> None:
    assert (await calls.client.request(method, path)).status_code == expected


async def test_body_that_is_too_large_is_refused(calls: Calls) -> None:
    large = "x" * (MAX_CALLBACK_BYTES + 1)
    response = await calls.client.post("/gateways/twilio/receipts", content=large)
    assert response.status_code == 413


async def test_many_calls_that_are_not_authentic_are_refused_without_a_reason(
    calls: Calls, sent: int
) -> None:
    statuses = {(await calls.kannel(sent, secret="wrong")).status_code for _ in range(60)}  # noqa: S106  # a wrong one
    assert statuses == {401, 429}
    assert (await calls.kannel(sent)).status_code == 200


async def test_call_of_another_event_is_answered_and_stores_nothing(
    engine: AsyncEngine, calls: Calls, sent: int
) -> None:
    assert (await calls.kannel(sent, status=99)).status_code == 200
    assert await status(engine) == "sent"


async def test_call_is_refused_with_503_while_the_database_is_away(
    engine: AsyncEngine, channels: Channels, sent: int
) -> None:
    class Failing(Inbox):
        def store(self, gateway: str, content: CallbackContent) -> asyncio.Future[None]:  # noqa: ARG002
            stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            stored.set_exception(UnavailableError())
            return stored

    waiting = Inbox(engine, RULES), Startup("mailer is starting")
    for inbox, startup in (waiting, (Failing(engine, RULES), Startup())):
        provider_calls = ProviderCalls(channels, inbox, startup, PUBLIC_URL)
        direct = DirectAnswers(CALL_PREFIX, provider_calls.answer_directly)
        app = in_front_of_application(provider_calls)
        async with listening(app, direct_answers=direct) as port:
            calls = Calls(provider_calls, port)
            async with calls.client:
                response = await calls.kannel(sent)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "5"
    assert await status(engine) == "sent"


async def test_unexpected_error_is_answered_500(
    engine: AsyncEngine, channels: Channels, sent: int
) -> None:
    class Failing(Inbox):
        def store(self, gateway: str, content: CallbackContent) -> asyncio.Future[None]:
            raise RuntimeError(gateway, content)

    provider_calls = ProviderCalls(channels, Failing(engine, RULES), Startup(), PUBLIC_URL)
    direct = DirectAnswers(CALL_PREFIX, provider_calls.answer_directly)
    app = in_front_of_application(provider_calls)
    async with listening(app, direct_answers=direct) as port:
        calls = Calls(provider_calls, port)
        async with calls.client:
            assert (await calls.kannel(sent)).status_code == 500


async def test_response_has_the_security_headers_and_no_secret(calls: Calls, sent: int) -> None:
    response = await calls.kannel(sent)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert SECRET not in str(response.headers) + response.text


async def test_receipt_for_a_deleted_mailing_is_answered(
    engine: AsyncEngine, calls: Calls, sent: int
) -> None:
    await execute(engine, "UPDATE mailing SET deleted_at = now()")
    assert (await calls.kannel(sent)).status_code == 200
    assert await status(engine) == "sent"
