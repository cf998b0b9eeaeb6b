"""Answers of an identity provider that are none, and for how long the others hold."""

import asyncio
import gzip
import ssl

import pytest
import trustme
from aiohttp import web
from tests.middle import (
    DISCOVERY,
    KEYS,
    REDIRECT,
    TOKEN,
    USERINFO,
    Clock,
    Middle,
    absence,
    nobodys,
    who_signs_in,
)
from tests.wire import Silent, served

from mailer.access.oidc import discovery
from mailer.access.oidc.model import ProviderAwayError

HOUR = 3600


async def test_what_a_provider_says_of_itself_holds_for_an_hour(middle: Middle) -> None:
    clock = Clock()
    async with middle.provider(clock=clock) as provider:
        await asyncio.gather(*(who_signs_in(provider) for _ in range(5)))
        clock.time = HOUR - 1
        await who_signs_in(provider)
        assert middle.asked[DISCOVERY] == middle.asked[KEYS] == 1
        clock.time = HOUR
        await who_signs_in(provider)
        assert middle.asked[DISCOVERY] == middle.asked[KEYS] == 2


# ---- answers that are none ------------------------------------------------------------------

PLACES = [DISCOVERY, TOKEN, KEYS]


@pytest.mark.parametrize("path", PLACES)
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
        (web.Response(body=b" " * (discovery.ANSWER_LIMIT + 1)), "too_large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_answer_that_is_none_is_the_providers_absence(
    middle: Middle, path: str, response: web.Response, reason: str
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=response.status, body=response.body)

    middle.answers[path] = answer
    async with middle.provider() as provider:
        assert await absence(provider) == reason


@pytest.mark.parametrize("path", [*PLACES, USERINFO])
async def test_a_redirect_is_not_followed(middle: Middle, path: str) -> None:
    async def elsewhere(_: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{middle.issuer}/elsewhere"})

    middle.answers[path] = elsewhere
    async with middle.provider() as provider:
        with pytest.raises(ProviderAwayError) as error:
            await who_signs_in(provider, "ulla")
    assert error.value.reason == "http_307"
    assert middle.asked["/elsewhere"] == 0


@pytest.mark.parametrize("path", PLACES)
async def test_a_slow_answer_is_not_waited_for(
    middle: Middle, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """However steadily it comes."""
    monkeypatch.setattr(discovery, "TIME_LIMIT", 0.3)  # instead of ten seconds for each of three

    async def dribble(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)

    middle.answers[path] = dribble
    async with middle.provider() as provider:
        assert await absence(provider) == "timeout"


async def test_an_answer_waits_for_ten_seconds_at_most() -> None:
    assert discovery.TIME_LIMIT == 10


async def test_a_packed_answer_is_not_unpacked(middle: Middle) -> None:
    """A few bytes of it may be as many as anybody wishes."""

    async def packed(_: web.Request) -> web.Response:
        body = gzip.compress(b" " * 10_000_000)
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    middle.answers[DISCOVERY] = packed
    async with middle.provider() as provider:
        assert await absence(provider) == "bad_answer"


async def test_who_waits_for_a_silent_provider_waits_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discovery, "TIME_LIMIT", 0.5)
    server = Silent()
    async with served(server.talk) as url, nobodys(url) as provider:
        waits = (provider.start(REDIRECT) for _ in range(20))
        errors = await asyncio.gather(*waits, return_exceptions=True)
    assert {getattr(error, "reason", None) for error in errors} == {"timeout"}
    assert server.received.count(b"GET ") == 1


async def test_who_leaves_does_not_end_what_others_wait_for(middle: Middle) -> None:
    async with middle.provider() as provider:
        first = asyncio.create_task(provider.start(REDIRECT))
        second = asyncio.create_task(provider.start(REDIRECT))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).url
    assert middle.asked[DISCOVERY] == 1


async def test_a_provider_that_was_away_is_asked_again(middle: Middle) -> None:
    async def away(_: web.Request) -> web.Response:
        return web.Response(status=503)

    async with middle.provider() as provider:
        middle.answers[DISCOVERY] = away
        assert await absence(provider) == "http_503"
        del middle.answers[DISCOVERY]
        assert (await who_signs_in(provider)).role == "viewer"


async def test_nobody_there_is_the_providers_absence() -> None:
    async with nobodys("http://127.0.0.1:1") as provider:
        with pytest.raises(ProviderAwayError) as error:
            await provider.start(REDIRECT)
    assert error.value.reason == "connection_failed"


async def test_a_certificate_that_nobody_vouches_for_is_the_providers_absence() -> None:
    server = Silent()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with served(server.talk, tls) as url, nobodys(url) as provider:
        with pytest.raises(ProviderAwayError) as error:
            await provider.start(REDIRECT)
    assert error.value.reason == "connection_failed"
    assert server.received == b""


async def test_a_proxy_in_the_environment_is_not_asked(
    middle: Middle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with middle.provider() as provider:
        assert (await provider.start(REDIRECT)).url


async def test_closing_ends_what_is_under_way() -> None:
    """Who asked may have left: nobody else would end it."""
    before = asyncio.all_tasks()
    server = Silent()
    async with served(server.talk) as url:
        provider = nobodys(url)
        asking = asyncio.create_task(provider.start(REDIRECT))
        await server.has_request.wait()
        asking.cancel()
        await asyncio.wait([asking])
        await provider.close()
        left = {task.get_coro().__qualname__ for task in asyncio.all_tasks() - before}  # type: ignore[union-attr]  # a coroutine's
        assert not [name for name in left if name.startswith("Kept.")]
