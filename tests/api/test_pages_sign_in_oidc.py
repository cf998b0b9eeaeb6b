"""Users sign in at the OpenID provider and return once, in the same browser."""

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
from tests.oidc_mitm import DISCOVERY, TOKEN, ProviderProxy, between
from tests.provider import OpenIdProvider, sign_in

from mailer.app import create_app
from mailer.settings import Settings

SITE = "http://127.0.0.1"
CALLBACK = f"{SITE}/login/oidc/callback"
AT_THE_PROVIDER = BROWSER | {"Sec-Fetch-Site": "cross-site"}
"""Headers of a browser that another site redirects here."""


@asynccontextmanager
async def create_browser(
    engine: AsyncEngine, settings: Settings
) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a browser of an application of its own."""
    app = create_app(engine, settings=settings)
    transport = inside(app)
    async with httpx.AsyncClient(
        transport=transport, base_url=SITE, headers=AT_THE_PROVIDER
    ) as browser:
        yield browser
    for close in app.on_shutdown:  # a lifespan must start and end in one task, a fixture does not
        await close()  # type: ignore[call-arg]  # closes the provider


@pytest.fixture
async def proxy(openid: OpenIdProvider) -> AsyncIterator[ProviderProxy]:
    async with between(openid) as proxy:
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
    async with create_browser(engine, oidc_settings) as browser:
        yield browser


async def sign_in_at_provider(
    browser: httpx.AsyncClient, login: str, return_path: str = "/"
) -> str:
    """Follow the link to the provider and sign in there; return the callback address."""
    response = await browser.get("/login/oidc", params={"return_path": return_path})
    assert response.status_code == 303, response.text
    return await sign_in(response.headers["location"], login)


async def get_refusal(browser: httpx.AsyncClient, address: str) -> str:
    """Return the page shown to a user who returns and is refused."""
    response = await browser.get(address)
    assert response.status_code == 403, response.text
    assert "You are not signed in" in response.text
    assert not [name for name in browser.cookies if name.endswith("session")]
    return response.text


async def test_a_user_of_the_provider_is_signed_in_and_redirected_to_the_wanted_page(
    engine: AsyncEngine, browser: httpx.AsyncClient, proxy: ProviderProxy
) -> None:
    assert urlsplit(proxy.issuer).hostname or "" in (await browser.get("/login")).text
    address = await sign_in_at_provider(browser, "oleg", return_path="/mailings?status=running")
    response = await browser.get(address)
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
    changed = "SELECT before || after FROM audit WHERE action = 'user_role_changed'"
    assert await value(engine, changed) == {"role": "admin"}


async def test_a_user_without_a_role_or_disabled_is_refused(
    engine: AsyncEngine, browser: httpx.AsyncClient
) -> None:
    assert "no role in mailer" in await get_refusal(
        browser, await sign_in_at_provider(browser, "nora")
    )
    assert await value(engine, "SELECT count(*) FROM app_user") == 0
    await browser.get(await sign_in_at_provider(browser, "vera"))
    await execute(engine, "UPDATE app_user SET disabled_at = now()")
    browser.cookies.clear()
    assert "disabled" in await get_refusal(browser, await sign_in_at_provider(browser, "vera"))
    failed = "SELECT json_agg(target_id ORDER BY id) FROM audit WHERE action = 'sign_in_failed'"
    known_id = await value(engine, "SELECT id FROM app_user")
    assert await value(engine, failed) == [None, known_id]


async def test_a_user_who_lost_the_role_is_signed_out_everywhere(
    engine: AsyncEngine, browser: httpx.AsyncClient, oidc_settings: Settings, proxy: ProviderProxy
) -> None:
    await browser.get(await sign_in_at_provider(browser, "vera"))
    assert (await browser.get("/mailings")).status_code == 200
    proxy.change_token(lambda claims: claims.update(roles=[]))
    async with create_browser(engine, oidc_settings) as other:
        with capture_logs() as logs:
            page = await get_refusal(other, await sign_in_at_provider(other, "vera"))
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
    changes = (
        "SELECT before || jsonb_build_object('to', after->'name') FROM audit WHERE action = '{}'"
    )
    expected = {"name": "Vera Before", "to": "Vera Viewer"}
    assert await value(engine, changes.format("user_name_changed")) == expected


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


async def test_a_callback_address_works_once(
    browser: httpx.AsyncClient,
) -> None:
    address = await sign_in_at_provider(browser, "vera")
    cookies = dict(browser.cookies)
    assert (await browser.get(address)).status_code == 303
    browser.cookies.clear()
    for name, cookie in cookies.items():
        browser.cookies.set(name, cookie)
    await get_refusal(browser, address)


async def test_a_code_works_once(
    engine: AsyncEngine, browser: httpx.AsyncClient, oidc_settings: Settings
) -> None:
    """The state is new but the code is not; the provider refuses it."""
    first = await sign_in_at_provider(browser, "vera")
    assert (await browser.get(first)).status_code == 303
    code = parse_qs(urlsplit(first).query)["code"][0]
    async with create_browser(engine, oidc_settings) as other:
        second = await sign_in_at_provider(other, "vera")
        state = parse_qs(urlsplit(second).query)["state"][0]
        await get_refusal(other, f"{CALLBACK}?code={code}&state={state}")


async def test_a_callback_address_does_not_work_in_another_browser(
    engine: AsyncEngine, browser: httpx.AsyncClient, oidc_settings: Settings
) -> None:
    address = await sign_in_at_provider(browser, "anna")
    async with create_browser(engine, oidc_settings) as other:
        await get_refusal(other, address)
        await sign_in_at_provider(other, "vera")  # now with a state of its own
        await get_refusal(other, address)


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
    state = parse_qs(urlsplit(await sign_in_at_provider(browser, "vera")).query)["state"][0]
    await get_refusal(browser, f"{CALLBACK}?error=access_denied&state={state}")


async def test_a_sign_in_expires_after_ten_minutes(
    engine: AsyncEngine, browser: httpx.AsyncClient
) -> None:
    address = await sign_in_at_provider(browser, "vera")
    await execute(engine, "UPDATE oidc_sign_in SET created_at = now() - interval '601 seconds'")
    await get_refusal(browser, address)


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
    """After the sign-in the user has to start again, because a callback address works once."""

    async def assert_is_unavailable(address: str) -> None:
        with capture_logs() as logs:
            response = await browser.get(address)
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert "does not answer" in response.text
        assert 'href="/login"' in response.text
        assert f'href="{address}' not in response.text
        assert [event["reason"] for event in logs if event["event"] == "provider_unavailable"] == [
            "bad_answer"
        ]

    proxy.changes[DISCOVERY] = lambda _: "nonsense"
    await assert_is_unavailable("/login/oidc")
    del proxy.changes[DISCOVERY]
    address = await sign_in_at_provider(browser, "vera")
    proxy.changes[TOKEN] = lambda _: "nonsense"
    await assert_is_unavailable(address)


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
    address = await sign_in_at_provider(browser, "vera")
    state = parse_qs(urlsplit(address).query)["state"][0]
    reasons = []
    for query in ("state=x", f"state={state}", f"state={state}&code=x"):
        with capture_logs() as logs:
            response = await browser.get(f"{CALLBACK}?{query}")
        assert response.status_code == 403
        browser.cookies.set("sign_in", state, domain="127.0.0.1", path="/login/oidc")
        reasons += [event["reason"] for event in logs if event["event"] == "sign_in_refused"]
    assert reasons == ["wrong_state", "no_code", "state_used"]
    state = parse_qs(urlsplit(await sign_in_at_provider(browser, "vera")).query)["state"][0]
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
        state = parse_qs(urlsplit(response.headers["location"]).query)["state"][0]
        callback = f"{CALLBACK.replace('http', 'https', 1)}?state={state}&error=access_denied"
        with capture_logs() as logs:
            response = await browser.get(callback)
        assert "refused_by_provider" in [event.get("reason") for event in logs]
        [removed] = response.headers.get_list("set-cookie")
        assert removed.startswith('__Secure-sign_in="";')


async def test_a_sign_in_redirects_to_own_pages_alone(
    browser: httpx.AsyncClient,
) -> None:
    for return_path in ("//evil.example", "https://evil.example/", "/\\evil.example"):
        response = await browser.get(await sign_in_at_provider(browser, "vera", return_path))
        assert response.headers["location"] == "/"


async def test_the_sign_in_cookie_is_limited_to_the_sign_in(browser: httpx.AsyncClient) -> None:
    response = await browser.get("/login/oidc")
    [cookie] = response.headers.get_list("set-cookie")
    attributes = {attribute.strip().lower() for attribute in cookie.split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/login/oidc", "max-age=600"} <= attributes
    state = parse_qs(urlsplit(response.headers["location"]).query)["state"][0]
    assert cookie.startswith(f"sign_in={state};")


async def test_the_rate_of_sign_ins_is_limited(browser: httpx.AsyncClient) -> None:
    responses = [await browser.get("/login/oidc") for _ in range(30)]
    statuses = [response.status_code for response in responses]
    assert 303 in statuses
    assert 429 in statuses
    limited = next(a for a in responses if a.status_code == 429)
    assert limited.headers["retry-after"] == "1"
    text = " ".join(limited.text.split())
    assert "Too many requests" in text
    assert "Too many sign-ins from your network." in text
    assert "Try again in 1 second." in text
    assert (await browser.get(CALLBACK)).status_code == 429


async def test_sign_ins_and_callbacks_are_limited_by_network(
    engine: AsyncEngine, oidc_settings: Settings
) -> None:
    app = create_app(engine, settings=oidc_settings)

    async def status(address: str) -> int:
        transport = inside(app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, headers=AT_THE_PROVIDER) as browser:
            return (await browser.get(CALLBACK)).status_code

    statuses = [await status(f"2001:db8::{n:x}") for n in range(30)]
    assert set(statuses) == {403, 429}
    assert await status("2001:db8:0:1::1") == 403


async def test_without_a_provider_its_routes_are_404(
    engine: AsyncEngine, oidc_settings: Settings
) -> None:
    for settings in (Settings(), msgspec.structs.replace(oidc_settings, auth="none")):
        async with create_browser(engine, settings) as browser:
            assert (await browser.get("/login/oidc")).status_code == 404
            assert (await browser.get("/login/oidc/callback?state=x&code=x")).status_code == 404
            assert "/login/oidc" not in (await browser.get("/login")).text
