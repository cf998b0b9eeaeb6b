"""Invalid responses of an identity provider, and caching of valid ones."""

import asyncio
import gzip
import ssl

import pytest
import trustme
from aiohttp import web
from tests.fault_servers import Silent, served
from tests.oidc_mitm import (
    DISCOVERY,
    KEYS,
    REDIRECT,
    TOKEN,
    USERINFO,
    Clock,
    Middle,
    absence,
    sign_in_identity,
    unregistered_provider,
)

from mailer.oidc import discovery
from mailer.oidc.model import ProviderUnavailableError

HOUR = 3600


async def test_provider_metadata_and_keys_are_cached_for_an_hour(middle: Middle) -> None:
    clock = Clock()
    async with middle.provider(clock=clock) as provider:
        await asyncio.gather(*(sign_in_identity(provider) for _ in range(5)))
        clock.time = HOUR - 1
        await sign_in_identity(provider)
        assert middle.asked[DISCOVERY] == middle.asked[KEYS] == 1
        clock.time = HOUR
        await sign_in_identity(provider)
        assert middle.asked[DISCOVERY] == middle.asked[KEYS] == 2


# ---- invalid responses ----------------------------------------------------------------------

ENDPOINTS = [DISCOVERY, TOKEN, KEYS]


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (web.Response(text="<html>"), "bad_answer"),
        (web.json_response([]), "bad_answer"),
        (web.json_response({}), "bad_answer"),
        (web.Response(body=b"[" * 100_000), "bad_answer"),
        (web.Response(body=b'{"\xff": 1}'), "bad_answer"),
        (web.Response(status=204), "http_204"),
        (web.Response(status=429), "http_429"),
        (web.Response(status=503), "http_503"),
        (web.Response(body=b" " * (discovery.MAX_RESPONSE_BYTES + 1)), "too_large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_after_an_invalid_response_the_provider_counts_as_unavailable(
    middle: Middle, path: str, response: web.Response, reason: str
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=response.status, body=response.body)

    middle.answers[path] = answer
    async with middle.provider() as provider:
        assert await absence(provider) == reason


@pytest.mark.parametrize("path", [*ENDPOINTS, USERINFO])
async def test_a_redirect_is_not_followed(middle: Middle, path: str) -> None:
    async def redirect(_: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{middle.issuer}/elsewhere"})

    middle.answers[path] = redirect
    async with middle.provider() as provider:
        with pytest.raises(ProviderUnavailableError) as error:
            await sign_in_identity(provider, "ulla")
    assert error.value.reason == "http_307"
    assert middle.asked["/elsewhere"] == 0


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_a_slow_response_times_out(
    middle: Middle, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Even if it keeps sending data."""
    monkeypatch.setattr(discovery, "REQUEST_TIMEOUT", 0.3)  # 10 s would make the test slow

    async def send_slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)

    middle.answers[path] = send_slowly
    async with middle.provider() as provider:
        assert await absence(provider) == "timeout"


async def test_the_request_timeout_is_ten_seconds() -> None:
    assert discovery.REQUEST_TIMEOUT == 10


async def test_a_compressed_response_is_not_decompressed(middle: Middle) -> None:
    """A few compressed bytes can decompress to any size."""

    async def send_compressed(_: web.Request) -> web.Response:
        body = gzip.compress(b" " * 10_000_000)
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    middle.answers[DISCOVERY] = send_compressed
    async with middle.provider() as provider:
        assert await absence(provider) == "bad_answer"


async def test_concurrent_sign_ins_share_one_request_to_a_silent_provider(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discovery, "REQUEST_TIMEOUT", 0.5)
    server = Silent()
    async with served(server.talk) as url, unregistered_provider(url) as provider:
        starts = (provider.start(REDIRECT) for _ in range(20))
        errors = await asyncio.gather(*starts, return_exceptions=True)
    assert {getattr(error, "reason", None) for error in errors} == {"timeout"}
    assert server.received.count(b"GET ") == 1


async def test_a_cancelled_sign_in_does_not_cancel_the_shared_request(middle: Middle) -> None:
    async with middle.provider() as provider:
        first = asyncio.create_task(provider.start(REDIRECT))
        second = asyncio.create_task(provider.start(REDIRECT))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).url
    assert middle.asked[DISCOVERY] == 1


async def test_after_an_invalid_response_the_provider_is_requested_again(middle: Middle) -> None:
    async def send_503(_: web.Request) -> web.Response:
        return web.Response(status=503)

    async with middle.provider() as provider:
        middle.answers[DISCOVERY] = send_503
        assert await absence(provider) == "http_503"
        del middle.answers[DISCOVERY]
        assert (await sign_in_identity(provider)).role == "viewer"


async def test_an_unreachable_provider_counts_as_unavailable() -> None:
    async with unregistered_provider("http://127.0.0.1:1") as provider:
        with pytest.raises(ProviderUnavailableError) as error:
            await provider.start(REDIRECT)
    assert error.value.reason == "connection_failed"


async def test_a_provider_with_an_untrusted_certificate_counts_as_unavailable() -> None:
    server = Silent()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with served(server.talk, tls) as url, unregistered_provider(url) as provider:
        with pytest.raises(ProviderUnavailableError) as error:
            await provider.start(REDIRECT)
    assert error.value.reason == "connection_failed"
    assert server.received == b""


async def test_proxies_in_the_environment_are_ignored(
    middle: Middle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with middle.provider() as provider:
        assert (await provider.start(REDIRECT)).url


async def test_closing_the_provider_ends_its_requests() -> None:
    """Even if the sign-in that caused a request was cancelled."""
    before = asyncio.all_tasks()
    server = Silent()
    async with served(server.talk) as url:
        provider = unregistered_provider(url)
        sign_in = asyncio.create_task(provider.start(REDIRECT))
        await server.has_request.wait()
        sign_in.cancel()
        await asyncio.wait([sign_in])
        await provider.close()
        remaining = {task.get_coro().__qualname__ for task in asyncio.all_tasks() - before}  # type: ignore[union-attr]  # all are coroutines
        assert not [name for name in remaining if name.startswith("TtlCache.")]
