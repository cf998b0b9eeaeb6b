"""Invalid responses of an OpenID provider, and caching of valid ones.

While the provider counts as unavailable, users are asked to try again later.
"""

import asyncio
import gzip
import ssl

import pytest
import trustme
from aiohttp import web
from tests.fault_servers import SilentServer, served
from tests.oidc_mitm import (
    DISCOVERY,
    KEYS,
    REDIRECT,
    TOKEN,
    USERINFO,
    Clock,
    ProviderProxy,
    provider_at,
    sign_in_identity,
    unavailable_reason,
)

from mailer.oidc import discovery
from mailer.oidc.model import ProviderUnavailableError

HOUR = 3600  # seconds


async def test_provider_metadata_and_keys_are_cached_for_an_hour(proxy: ProviderProxy) -> None:
    clock = Clock()
    async with proxy.provider(clock=clock) as provider:
        await asyncio.gather(*(sign_in_identity(provider) for _ in range(5)))
        clock.time = HOUR - 1
        await sign_in_identity(provider)
        assert proxy.request_counts[DISCOVERY] == proxy.request_counts[KEYS] == 1
        clock.time = HOUR
        await sign_in_identity(provider)
        assert proxy.request_counts[DISCOVERY] == proxy.request_counts[KEYS] == 2


# ---- invalid responses ----------------------------------------------------------------------

ENDPOINTS = [DISCOVERY, TOKEN, KEYS]
"""Paths of the provider that every sign-in requests."""


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
    proxy: ProviderProxy, path: str, response: web.Response, reason: str
) -> None:
    async def copy_response(_: web.Request) -> web.Response:
        return web.Response(status=response.status, body=response.body)

    proxy.answers[path] = copy_response  # a response object can be sent only once
    async with proxy.provider() as provider:
        assert await unavailable_reason(provider) == reason


@pytest.mark.parametrize("path", [*ENDPOINTS, USERINFO])
async def test_a_redirect_is_not_followed(proxy: ProviderProxy, path: str) -> None:
    async def redirect(_: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{proxy.issuer}/elsewhere"})

    proxy.answers[path] = redirect
    async with proxy.provider() as provider:
        with pytest.raises(ProviderUnavailableError) as error:
            await sign_in_identity(provider, "ulla")  # her sign-in also needs the userinfo
    assert error.value.reason == "http_307"
    assert proxy.request_counts["/elsewhere"] == 0


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_a_slow_response_times_out(
    proxy: ProviderProxy, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The limit is for the whole response, so that sending a little data does not extend it."""
    monkeypatch.setattr(discovery, "REQUEST_TIMEOUT", 0.3)  # 10 s would make the test slow

    async def send_slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)

    proxy.answers[path] = send_slowly
    async with proxy.provider() as provider:
        assert await unavailable_reason(provider) == "timeout"


async def test_the_request_timeout_is_ten_seconds() -> None:
    assert discovery.REQUEST_TIMEOUT == 10


async def test_a_compressed_response_is_not_decompressed(proxy: ProviderProxy) -> None:
    """A few compressed bytes can decompress to any size."""

    async def send_compressed(_: web.Request) -> web.Response:
        compressed = gzip.compress(b" " * 10_000_000)
        return web.Response(body=compressed, headers={"Content-Encoding": "gzip"})

    proxy.answers[DISCOVERY] = send_compressed
    async with proxy.provider() as provider:
        assert await unavailable_reason(provider) == "bad_answer"


async def test_concurrent_sign_ins_share_one_request_to_a_silent_provider(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discovery, "REQUEST_TIMEOUT", 0.5)
    server = SilentServer()
    async with served(server.talk) as url, provider_at(url) as provider:
        starts = (provider.start(REDIRECT) for _ in range(20))
        errors = await asyncio.gather(*starts, return_exceptions=True)
    assert {getattr(error, "reason", None) for error in errors} == {"timeout"}
    assert server.received.count(b"GET ") == 1


async def test_a_cancelled_sign_in_does_not_cancel_the_shared_request(proxy: ProviderProxy) -> None:
    async with proxy.provider() as provider:
        first = asyncio.create_task(provider.start(REDIRECT))
        second = asyncio.create_task(provider.start(REDIRECT))
        await asyncio.sleep(0)  # both start, and wait for the same request
        first.cancel()
        assert (await second).url
    assert proxy.request_counts[DISCOVERY] == 1


async def test_after_an_invalid_response_the_provider_is_requested_again(
    proxy: ProviderProxy,
) -> None:
    async def send_503(_: web.Request) -> web.Response:
        return web.Response(status=503)

    async with proxy.provider() as provider:
        proxy.answers[DISCOVERY] = send_503
        assert await unavailable_reason(provider) == "http_503"
        del proxy.answers[DISCOVERY]
        assert (await sign_in_identity(provider)).role == "viewer"


async def test_an_unreachable_provider_counts_as_unavailable() -> None:
    async with provider_at("http://127.0.0.1:1") as provider:
        with pytest.raises(ProviderUnavailableError) as error:
            await provider.start(REDIRECT)
    assert error.value.reason == "connection_failed"


async def test_a_provider_with_an_untrusted_certificate_counts_as_unavailable() -> None:
    server = SilentServer()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with served(server.talk, tls) as url, provider_at(url) as provider:
        with pytest.raises(ProviderUnavailableError) as error:
            await provider.start(REDIRECT)
    assert error.value.reason == "connection_failed"
    assert server.received == b""


async def test_proxies_in_the_environment_are_ignored(
    proxy: ProviderProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with proxy.provider() as provider:
        assert (await provider.start(REDIRECT)).url


async def test_closing_the_provider_ends_its_requests() -> None:
    """Even if the sign-in that caused a request was cancelled."""
    tasks_before = asyncio.all_tasks()
    server = SilentServer()
    async with served(server.talk) as url:
        provider = provider_at(url)
        sign_in = asyncio.create_task(provider.start(REDIRECT))
        await server.has_received.wait()
        sign_in.cancel()
        await asyncio.wait([sign_in])
        await provider.close()
        new_tasks = asyncio.all_tasks() - tasks_before
        names = {task.get_coro().__qualname__ for task in new_tasks}  # type: ignore[union-attr]  # all are coroutines
        assert not [name for name in names if name.startswith("TtlCache.")]  # it runs the requests
