"""Users sign in at the OpenID provider, which redirects them to the callback once.

The provider (`tests.provider`) has users with roles in mailer: anna is an admin, oleg an operator,
vera a viewer; nora has no role. Between it and mailer is a proxy that can change its responses.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.api.browser_session import BROWSER
from tests.asgi_client import inside
from tests.factories import execute, value
from tests.oidc_mitm import DISCOVERY, TOKEN, ProviderProxy, running_proxy
from tests.provider import OpenIdProvider, sign_in

from mailer.admin.users import sign_in_oidc
from mailer.app import OIDC_RATE, create_app
from mailer.settings import Settings

SITE = "http://127.0.0.1"
CALLBACK = f"{SITE}/login/oidc/callback"
REDIRECTED = BROWSER | {"Sec-Fetch-Site": "cross-site"}
"""Headers of a browser that another site, such as the provider, redirects to mailer."""


@asynccontextmanager
async def create_browser(
    engine: AsyncEngine, settings: Settings
) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a browser without cookies, for an application of its own."""
    app = create_app(engine, settings=settings)
    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url=SITE, headers=REDIRECTED) as browser:
        yield browser
    for close in app.on_shutdown:  # a lifespan must start and end in one task, a fixture does not
        await close()  # type: ignore[call-arg]  # closes the provider


@pytest.fixture
async def proxy(openid: OpenIdProvider) -> AsyncIterator[ProviderProxy]:
    """The proxy before the provider; it changes nothing until a test says so."""
    async with running_proxy(openid) as proxy:
        yield proxy


@pytest.fixture
def oidc_settings(proxy: ProviderProxy) -> Settings:
    """Settings for signing in at the provider."""
    client = proxy.openid.register(CALLBACK)
    return Settings(
        oidc_issuer=proxy.issuer,
        oidc_client_id=client.client_id,
        oidc_client_secret=client.client_secret,
    )


@pytest.fixture
async def browser(engine: AsyncEngine, oidc_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A browser for an application that uses the provider."""
    async with create_browser(engine, oidc_settings) as browser:
        yield browser


async def sign_in_at_provider(
    browser: httpx.AsyncClient, login: str, return_path: str = "/"
) -> str:
    """Follow the link to the provider and sign in there; return the callback URL with its code."""
    response = await browser.get("/login/oidc", params={"return_path": return_path})
    assert response.status_code == 303, response.text
    return await sign_in(response.headers["location"], login)


def state_of(url: str) -> str:
    """Return the parameter `state` of a URL."""
    return parse_qs(urlsplit(url).query)["state"][0]


async def get_refusal(browser: httpx.AsyncClient, callback_url: str) -> str:
    """Return the page of a callback that is refused; the user is not signed in."""
    response = await browser.get(callback_url)
    assert response.status_code == 403, response.text
    assert "You are not signed in" in response.text
    assert not [name for name in browser.cookies if name.endswith("session")]
    return response.text


async def test_a_user_of_the_provider_is_signed_in_and_redirected_to_the_wanted_page(
    engine: AsyncEngine, browser: httpx.AsyncClient, proxy: ProviderProxy
) -> None:
    assert str(urlsplit(proxy.issuer).hostname) in (await browser.get("/login")).text
    callback_url = await sign_in_at_provider(
        browser, "oleg", return_path="/mailings?status=running"
    )
    response = await browser.get(callback_url)
    assert (response.status_code, response.headers["location"]) == (303, "/mailings?status=running")
    page = (await browser.get("/mailings")).text
    assert "Oleg Operator" in page
    assert "/mailings/new" in page  # allowed for operators
    assert (await browser.get("/system")).status_code == 403
    actions = await value(engine, "SELECT string_agg(action, ' ' ORDER BY id) FROM audit")
    assert actions == "user_created signed_in"


async def test_the_role_is_updated_from_the_provider_at_each_sign_in(
    engine: AsyncEngine, browser: httpx.AsyncClient
) -> None:
    await browser.get(await sign_in_at_provider(browser, "anna"))
    assert await value(engine, "SELECT role FROM app_user") == "admin"
    await execute(engine, "UPDATE app_user SET role = 'viewer'")
    await browser.get(await sign_in_at_provider(browser, "anna"))
    assert await value(engine, "SELECT role FROM app_user") == "admin"
    assert await value(engine, "SELECT count(*) FROM app_user") == 1
    assert await value(engine, "SELECT count(*) FROM session") == 1
    role_after = "SELECT after FROM audit WHERE action = 'user_role_changed'"
    assert await value(engine, role_after) == {"role": "admin"}


async def test_a_user_without_a_role_or_disabled_is_refused(
    engine: AsyncEngine, browser: httpx.AsyncClient
) -> None:
    page = await get_refusal(browser, await sign_in_at_provider(browser, "nora"))
    assert "no role in mailer" in page
    assert await value(engine, "SELECT count(*) FROM app_user") == 0

    await browser.get(await sign_in_at_provider(browser, "vera"))
    await execute(engine, "UPDATE app_user SET disabled_at = now()")
    browser.cookies.clear()
    assert "disabled" in await get_refusal(browser, await sign_in_at_provider(browser, "vera"))

    refused_ids = (
        "SELECT json_agg(target_id ORDER BY id) FROM audit WHERE action = 'sign_in_failed'"
    )
    veras_id = await value(engine, "SELECT id FROM app_user")
    assert await value(engine, refused_ids) == [None, veras_id]


async def test_a_user_who_lost_the_role_is_signed_out_everywhere(
    engine: AsyncEngine, browser: httpx.AsyncClient, oidc_settings: Settings, proxy: ProviderProxy
) -> None:
    await browser.get(await sign_in_at_provider(browser, "vera"))
    assert (await browser.get("/mailings")).status_code == 200
    proxy.change_token(lambda claims: claims.update(roles=[]))
    async with create_browser(engine, oidc_settings) as elsewhere:
        with capture_logs() as logs:
            page = await get_refusal(elsewhere, await sign_in_at_provider(elsewhere, "vera"))
    assert (await browser.get("/mailings")).headers["location"].startswith("/login")
    actions = "SELECT json_agg(action ORDER BY id) FROM audit WHERE target_id IS NOT NULL"
    expected = ["user_created", "signed_in", "sessions_ended", "sign_in_failed"]
    assert await value(engine, actions) == expected
    subject = await value(engine, "SELECT subject FROM app_user")
    assert subject not in page + str(logs)


async def test_a_name_changed_at_the_provider_is_recorded(
    engine: AsyncEngine, browser: httpx.AsyncClient
) -> None:
    await browser.get(await sign_in_at_provider(browser, "vera"))
    await execute(engine, "UPDATE app_user SET name = 'Vera Before'")
    await browser.get(await sign_in_at_provider(browser, "vera"))
    names = (
        "SELECT jsonb_build_array(before->'name', after->'name') FROM audit"
        " WHERE action = 'user_name_changed'"
    )
    assert await value(engine, names) == ["Vera Before", "Vera Viewer"]


async def test_signing_in_ends_the_previous_session_of_the_browser(
    engine: AsyncEngine, browser: httpx.AsyncClient
) -> None:
    await browser.get(await sign_in_at_provider(browser, "vera"))
    before = await value(engine, "SELECT digest FROM session")
    await browser.get(await sign_in_at_provider(browser, "anna"))
    assert await value(engine, "SELECT count(*) FROM session") == 1
    assert await value(engine, "SELECT digest FROM session") != before
    actor = "SELECT actor FROM audit WHERE action = 'signed_out'"
    assert await value(engine, actor) == "Vera Viewer"


async def test_a_callback_address_works_once(browser: httpx.AsyncClient) -> None:
    callback_url = await sign_in_at_provider(browser, "vera")
    cookies_before = dict(browser.cookies)
    assert (await browser.get(callback_url)).status_code == 303
    browser.cookies.clear()
    for name, cookie in cookies_before.items():
        browser.cookies.set(name, cookie)
    await get_refusal(browser, callback_url)


async def test_a_code_works_once(
    engine: AsyncEngine, browser: httpx.AsyncClient, oidc_settings: Settings
) -> None:
    """The provider refuses a used code, even in a callback with a new state."""
    used_url = await sign_in_at_provider(browser, "vera")
    assert (await browser.get(used_url)).status_code == 303
    used_code = parse_qs(urlsplit(used_url).query)["code"][0]
    async with create_browser(engine, oidc_settings) as elsewhere:
        new_state = state_of(await sign_in_at_provider(elsewhere, "vera"))
        await get_refusal(elsewhere, f"{CALLBACK}?code={used_code}&state={new_state}")


async def test_a_callback_address_does_not_work_in_another_browser(
    engine: AsyncEngine, browser: httpx.AsyncClient, oidc_settings: Settings
) -> None:
    callback_url = await sign_in_at_provider(browser, "anna")
    async with create_browser(engine, oidc_settings) as elsewhere:
        await get_refusal(elsewhere, callback_url)
        await sign_in_at_provider(elsewhere, "vera")  # now this browser has another state
        await get_refusal(elsewhere, callback_url)


@pytest.mark.parametrize(
    "query",
    ["", "state=", "code=x", "state=x&code=x", "state=%ED%A0%80&code=x", "error=access_denied"],
)
async def test_an_invalid_callback_is_refused(browser: httpx.AsyncClient, query: str) -> None:
    await sign_in_at_provider(browser, "vera")
    await get_refusal(browser, f"{CALLBACK}?{query}")


async def test_a_user_who_denies_access_at_the_provider_is_refused(
    browser: httpx.AsyncClient,
) -> None:
    state = state_of(await sign_in_at_provider(browser, "vera"))
    await get_refusal(browser, f"{CALLBACK}?error=access_denied&state={state}")


async def test_a_sign_in_expires_after_ten_minutes(
    engine: AsyncEngine, browser: httpx.AsyncClient
) -> None:
    callback_url = await sign_in_at_provider(browser, "vera")
    await execute(engine, "UPDATE oidc_sign_in SET created_at = now() - interval '601 seconds'")
    await get_refusal(browser, callback_url)


@pytest.mark.parametrize("claim", ["iss", "aud", "nonce", "exp"])
async def test_a_token_with_a_wrong_claim_is_refused(
    browser: httpx.AsyncClient, proxy: ProviderProxy, claim: str
) -> None:
    wrong: dict[str, Any] = {"iss": "http://other", "aud": "other", "nonce": "other", "exp": 1}
    proxy.change_token(lambda claims: claims.update({claim: wrong[claim]}))
    await get_refusal(browser, await sign_in_at_provider(browser, "anna"))


async def test_an_unavailable_provider_is_503_before_and_after_the_sign_in(
    browser: httpx.AsyncClient, proxy: ProviderProxy
) -> None:
    """After the sign-in the user has to start again, because a callback URL works once."""

    async def assert_is_unavailable(url: str) -> None:
        with capture_logs() as logs:
            response = await browser.get(url)
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert "does not answer" in response.text
        assert 'href="/login"' in response.text
        assert f'href="{url}' not in response.text
        reasons = [event["reason"] for event in logs if event["event"] == "provider_unavailable"]
        assert reasons == ["bad_answer"]

    proxy.changes[DISCOVERY] = lambda _: "nonsense"
    await assert_is_unavailable("/login/oidc")
    del proxy.changes[DISCOVERY]

    callback_url = await sign_in_at_provider(browser, "vera")
    proxy.changes[TOKEN] = lambda _: "nonsense"
    await assert_is_unavailable(callback_url)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("issuer", "https://id.example", "wrong_issuer"),
        ("token_endpoint", "http://id.example/token", "unsafe_endpoint"),
    ],
)
async def test_a_provider_with_a_wrong_discovery_document_is_503(
    browser: httpx.AsyncClient, proxy: ProviderProxy, name: str, value: str, reason: str
) -> None:
    proxy.changes[DISCOVERY] = lambda document: document | {name: value}
    with capture_logs() as logs:
        response = await browser.get("/login/oidc")
    assert response.status_code == 503
    assert "does not match the configuration" in response.text
    events = [event for event in logs if event["log_level"] in {"warning", "error"}]
    assert [(event["event"], event["reason"]) for event in events] == [("sign_in_refused", reason)]


async def test_refusals_that_anyone_can_cause_are_logged_but_not_audited(
    engine: AsyncEngine, browser: httpx.AsyncClient
) -> None:
    state = state_of(await sign_in_at_provider(browser, "vera"))
    reasons = []
    for query in ("state=x", f"state={state}", f"state={state}&code=x"):
        with capture_logs() as logs:
            response = await browser.get(f"{CALLBACK}?{query}")
        assert response.status_code == 403
        reasons += [event["reason"] for event in logs if event["event"] == "sign_in_refused"]
        # the response has deleted the cookie with the state
        browser.cookies.set("sign_in", state, domain="127.0.0.1", path="/login/oidc")
    assert reasons == ["wrong_state", "no_code", "state_used"]

    state = state_of(await sign_in_at_provider(browser, "vera"))
    await get_refusal(browser, f"{CALLBACK}?state={state}&code=made-up")
    assert await value(engine, "SELECT count(*) FROM audit") == 0


async def test_the_sign_in_cookie_is_secure_behind_tls(
    engine: AsyncEngine, oidc_settings: Settings
) -> None:
    async with create_browser(engine, oidc_settings) as browser:
        response = await browser.get(f"{SITE.replace('http', 'https')}/login/oidc")
        [cookie] = response.headers.get_list("set-cookie")
        assert cookie.startswith("__Secure-sign_in=")
        assert "; secure" in cookie.lower()

        state = state_of(response.headers["location"])
        callback_with_tls = CALLBACK.replace("http", "https", 1)
        with capture_logs() as logs:
            response = await browser.get(f"{callback_with_tls}?state={state}&error=access_denied")
        assert "refused_by_provider" in [event.get("reason") for event in logs]
        [deleted_cookie] = response.headers.get_list("set-cookie")
        assert deleted_cookie.startswith('__Secure-sign_in="";')


async def test_a_sign_in_redirects_to_own_pages_alone(browser: httpx.AsyncClient) -> None:
    for return_path in ("//evil.example", "https://evil.example/", "/\\evil.example"):
        response = await browser.get(await sign_in_at_provider(browser, "vera", return_path))
        assert response.headers["location"] == "/"


async def test_the_sign_in_cookie_is_limited_to_the_sign_in(browser: httpx.AsyncClient) -> None:
    response = await browser.get("/login/oidc")
    [cookie] = response.headers.get_list("set-cookie")
    attributes = {attribute.strip().lower() for attribute in cookie.split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/login/oidc", "max-age=600"} <= attributes
    state = state_of(response.headers["location"])
    assert cookie.startswith(f"sign_in={state};")


@pytest.fixture
def _stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock of the rate limiter, so that the load of the machine does not matter."""
    monkeypatch.setattr(sign_in_oidc, "elapsed", lambda: 0.0)


REQUESTS_AT_ONCE = 2 * OIDC_RATE
"""Requests that a network may send at once: those of two seconds."""


@pytest.mark.usefixtures("_stopped_clock")
async def test_the_rate_of_sign_ins_is_limited(browser: httpx.AsyncClient) -> None:
    for _ in range(REQUESTS_AT_ONCE):
        assert (await browser.get("/login/oidc")).status_code == 303
    limited = await browser.get("/login/oidc")
    assert limited.status_code == 429
    assert limited.headers["retry-after"] == "1"
    text = " ".join(limited.text.split())
    assert "Too many requests" in text
    assert "Too many sign-ins from your network." in text
    assert "Try again in 1 second." in text
    assert (await browser.get(CALLBACK)).status_code == 429


@pytest.mark.usefixtures("_stopped_clock")
async def test_sign_ins_and_callbacks_are_limited_by_network(
    engine: AsyncEngine, oidc_settings: Settings
) -> None:
    app = create_app(engine, settings=oidc_settings)

    async def status(address: str) -> int:
        transport = inside(app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, headers=REDIRECTED) as browser:
            return (await browser.get(CALLBACK)).status_code

    one_network = (f"2001:db8::{n:x}" for n in range(REQUESTS_AT_ONCE + 1))  # a /64 network
    statuses = [await status(address) for address in one_network]
    assert statuses == [403] * REQUESTS_AT_ONCE + [429]  # 403: admitted, but without a state
    assert await status("2001:db8:0:1::1") == 403  # another network


async def test_without_a_provider_its_routes_are_404(
    engine: AsyncEngine, oidc_settings: Settings
) -> None:
    for settings in (Settings(), msgspec.structs.replace(oidc_settings, auth="none")):
        async with create_browser(engine, settings) as browser:
            assert (await browser.get("/login/oidc")).status_code == 404
            assert (await browser.get("/login/oidc/callback?state=x&code=x")).status_code == 404
            assert "/login/oidc" not in (await browser.get("/login")).text
