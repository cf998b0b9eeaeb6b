"""People sign in at the OpenID provider, and come back once, in the browser that went there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.api.visits import BROWSER
from tests.asked import inside
from tests.middle import DISCOVERY, TOKEN, Middle, between
from tests.provider import OpenIdProvider, sign_in
from tests.sample import execute, value

from mailer.app import create_app
from mailer.settings import Settings

SITE = "http://127.0.0.1"
CALLBACK = f"{SITE}/login/oidc/callback"
AT_THE_PROVIDER = BROWSER | {"Sec-Fetch-Site": "cross-site"}
"""What a browser says that another site has sent here."""


@asynccontextmanager
async def visitor(engine: AsyncEngine, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A browser at an application of its own."""
    app = create_app(engine, settings=settings)
    transport = inside(app)
    async with httpx.AsyncClient(
        transport=transport, base_url=SITE, headers=AT_THE_PROVIDER
    ) as browser:
        yield browser
    for close in app.on_shutdown:  # its lifespan would have to begin and end in one task
        await close()  # type: ignore[call-arg]  # the provider's


@pytest.fixture
async def middle(openid: OpenIdProvider) -> AsyncIterator[Middle]:
    async with between(openid) as middle:
        yield middle


@pytest.fixture
def known(middle: Middle) -> Settings:
    """Settings under which the provider signs people in."""
    client = middle.openid.register(CALLBACK)
    return Settings(
        oidc_issuer=middle.issuer,
        oidc_client_id=client.client_id,
        oidc_client_secret=client.client_secret,
    )


@pytest.fixture
async def browser(engine: AsyncEngine, known: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with visitor(engine, known) as browser:
        yield browser


async def leave(browser: httpx.AsyncClient, login: str, back: str = "/") -> str:
    """Go to the provider and sign in there; return the address that leads back."""
    answer = await browser.get("/login/oidc", params={"back": back})
    assert answer.status_code == 303, answer.text
    return await sign_in(answer.headers["location"], login)


async def refused(browser: httpx.AsyncClient, address: str) -> str:
    """Return the page that one who comes back and is not let in sees."""
    answer = await browser.get(address)
    assert answer.status_code == 403, answer.text
    assert "You are not signed in" in answer.text
    assert not [name for name in browser.cookies if name.endswith("session")]
    return answer.text


async def test_who_the_provider_knows_comes_in_to_where_they_wanted(
    engine: AsyncEngine, browser: httpx.AsyncClient, middle: Middle
) -> None:
    assert urlsplit(middle.issuer).hostname or "" in (await browser.get("/login")).text
    address = await leave(browser, "oleg", back="/mailings?status=running")
    answer = await browser.get(address)
    assert (answer.status_code, answer.headers["location"]) == (303, "/mailings?status=running")
    page = (await browser.get("/mailings")).text
    assert "Oleg Operator" in page
    assert "/mailings/new" in page  # which an operator may
    assert (await browser.get("/system")).status_code == 403
    told = await value(engine, "SELECT string_agg(action, ' ' ORDER BY id) FROM audit")
    assert told == "account_made signed_in"


async def test_a_role_is_what_the_provider_says_at_each_sign_in(
    engine: AsyncEngine, browser: httpx.AsyncClient
) -> None:
    await browser.get(await leave(browser, "anna"))
    assert await value(engine, "SELECT role FROM account") == "admin"
    await execute(engine, "UPDATE account SET role = 'viewer'")
    await browser.get(await leave(browser, "anna"))
    assert await value(engine, "SELECT role FROM account") == "admin"
    assert await value(engine, "SELECT count(*) FROM account") == 1
    assert await value(engine, "SELECT count(*) FROM session") == 1
    changed = "SELECT before || after FROM audit WHERE action = 'account_role_changed'"
    assert await value(engine, changed) == {"role": "admin"}


async def test_who_is_disabled_or_has_no_role_stays_out(
    engine: AsyncEngine, browser: httpx.AsyncClient
) -> None:
    assert "no role here" in await refused(browser, await leave(browser, "nora"))
    assert await value(engine, "SELECT count(*) FROM account") == 0
    await browser.get(await leave(browser, "vera"))
    await execute(engine, "UPDATE account SET disabled_at = now()")
    browser.cookies.clear()
    assert "disabled" in await refused(browser, await leave(browser, "vera"))
    failed = "SELECT json_agg(target_id ORDER BY id) FROM audit WHERE action = 'sign_in_failed'"
    known_id = await value(engine, "SELECT id FROM account")
    assert await value(engine, failed) == [None, known_id]


async def test_who_has_no_role_any_more_is_signed_out_everywhere(
    engine: AsyncEngine, browser: httpx.AsyncClient, known: Settings, middle: Middle
) -> None:
    await browser.get(await leave(browser, "vera"))
    assert (await browser.get("/mailings")).status_code == 200
    middle.change_token(lambda claims: claims.update(roles=[]))
    async with visitor(engine, known) as other:
        with capture_logs() as logs:
            told = await refused(other, await leave(other, "vera"))
    assert (await browser.get("/mailings")).headers["location"].startswith("/login")
    last = "SELECT json_agg(action ORDER BY id) FROM audit WHERE target_id IS NOT NULL"
    expected = ["account_made", "signed_in", "sessions_ended", "sign_in_failed"]
    assert await value(engine, last) == expected
    subject = await value(engine, "SELECT subject FROM account")
    assert subject not in told + str(logs)


async def test_a_name_that_the_provider_changes_is_written_down(
    engine: AsyncEngine, browser: httpx.AsyncClient
) -> None:
    await browser.get(await leave(browser, "vera"))
    await execute(engine, "UPDATE account SET name = 'Vera Before'")
    await browser.get(await leave(browser, "vera"))
    told = "SELECT before || jsonb_build_object('to', after->'name') FROM audit WHERE action = '{}'"
    expected = {"name": "Vera Before", "to": "Vera Viewer"}
    assert await value(engine, told.format("account_name_changed")) == expected


async def test_coming_in_ends_the_session_that_the_browser_had(
    engine: AsyncEngine, browser: httpx.AsyncClient
) -> None:
    await browser.get(await leave(browser, "vera"))
    before = await value(engine, "SELECT digest FROM session")
    await browser.get(await leave(browser, "anna"))
    assert await value(engine, "SELECT count(*) FROM session") == 1
    assert await value(engine, "SELECT digest FROM session") != before
    told = "SELECT actor FROM audit WHERE action = 'signed_out'"
    assert await value(engine, told) == "Vera Viewer"


async def test_an_address_that_was_used_leads_in_no_second_time(
    browser: httpx.AsyncClient,
) -> None:
    address = await leave(browser, "vera")
    kept = dict(browser.cookies)
    assert (await browser.get(address)).status_code == 303
    browser.cookies.clear()
    for name, cookie in kept.items():
        browser.cookies.set(name, cookie)
    await refused(browser, address)


async def test_a_code_that_was_used_leads_in_no_second_time(
    engine: AsyncEngine, browser: httpx.AsyncClient, known: Settings
) -> None:
    """The state is new, the code is not: the provider refuses it."""
    first = await leave(browser, "vera")
    assert (await browser.get(first)).status_code == 303
    code = parse_qs(urlsplit(first).query)["code"][0]
    async with visitor(engine, known) as other:
        second = await leave(other, "vera")
        state = parse_qs(urlsplit(second).query)["state"][0]
        await refused(other, f"{CALLBACK}?code={code}&state={state}")


async def test_another_browser_cannot_be_led_in_by_somebody_elses_address(
    engine: AsyncEngine, browser: httpx.AsyncClient, known: Settings
) -> None:
    address = await leave(browser, "anna")
    async with visitor(engine, known) as other:
        await refused(other, address)
        await leave(other, "vera")  # has a state of its own
        await refused(other, address)


@pytest.mark.parametrize(
    "query",
    ["", "state=", "code=x", "state=x&code=x", "state=%ED%A0%80&code=x", "error=access_denied"],
)
async def test_who_comes_back_with_nothing_of_use_is_told_so(
    browser: httpx.AsyncClient, query: str
) -> None:
    await leave(browser, "vera")
    await refused(browser, f"{CALLBACK}?{query}")


async def test_who_says_no_at_the_provider_is_told_so(browser: httpx.AsyncClient) -> None:
    state = parse_qs(urlsplit(await leave(browser, "vera")).query)["state"][0]
    await refused(browser, f"{CALLBACK}?error=access_denied&state={state}")


async def test_who_stays_too_long_at_the_provider_starts_again(
    engine: AsyncEngine, browser: httpx.AsyncClient
) -> None:
    address = await leave(browser, "vera")
    await execute(engine, "UPDATE sign_in SET created_at = now() - interval '601 seconds'")
    await refused(browser, address)


@pytest.mark.parametrize("claim", ["iss", "aud", "nonce", "exp"])
async def test_a_token_that_is_not_for_us_leads_nobody_in(
    browser: httpx.AsyncClient, middle: Middle, claim: str
) -> None:
    wrong: dict[str, Any] = {"iss": "http://other", "aud": "other", "nonce": "other", "exp": 1}
    middle.change_token(lambda claims: claims.update({claim: wrong[claim]}))
    await refused(browser, await leave(browser, "anna"))


async def test_a_provider_that_is_away_is_told_so_and_asked_again(
    browser: httpx.AsyncClient, middle: Middle
) -> None:
    """On the way back too one starts again, for the address is good for once."""

    async def away(address: str) -> None:
        with capture_logs() as logs:
            answer = await browser.get(address)
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "does not answer" in answer.text
        assert 'href="/login"' in answer.text
        assert f'href="{address}' not in answer.text
        assert [each["reason"] for each in logs if each["event"] == "provider_away"] == [
            "bad_answer"
        ]

    middle.changes[DISCOVERY] = lambda _: "nonsense"
    await away("/login/oidc")
    del middle.changes[DISCOVERY]
    address = await leave(browser, "vera")
    middle.changes[TOKEN] = lambda _: "nonsense"
    await away(address)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("issuer", "https://id.example", "wrong_issuer"),
        ("token_endpoint", "http://id.example/token", "unsafe_endpoint"),
    ],
)
async def test_a_provider_that_is_not_what_is_set_leads_nobody_away(
    browser: httpx.AsyncClient, middle: Middle, name: str, value: str, reason: str
) -> None:
    middle.changes[DISCOVERY] = lambda said: said | {name: value}
    with capture_logs() as logs:
        answer = await browser.get("/login/oidc")
    assert answer.status_code == 503
    assert "not the one that is set" in answer.text
    told = [each for each in logs if each["log_level"] in {"warning", "error"}]
    assert [(each["event"], each["reason"]) for each in told] == [("sign_in_refused", reason)]


async def test_what_anybody_can_bring_about_is_logged_and_not_kept_for_ever(
    engine: AsyncEngine, browser: httpx.AsyncClient
) -> None:
    address = await leave(browser, "vera")
    state = parse_qs(urlsplit(address).query)["state"][0]
    told = []
    for query in ("state=x", f"state={state}", f"state={state}&code=x"):
        with capture_logs() as logs:
            answer = await browser.get(f"{CALLBACK}?{query}")
        assert answer.status_code == 403
        browser.cookies.set("sign_in", state, domain="127.0.0.1", path="/login/oidc")
        told += [each["reason"] for each in logs if each["event"] == "sign_in_refused"]
    assert told == ["wrong_state", "no_code", "state_used"]
    state = parse_qs(urlsplit(await leave(browser, "vera")).query)["state"][0]
    await refused(browser, f"{CALLBACK}?state={state}&code=made-up")
    assert await value(engine, "SELECT count(*) FROM audit") == 0


async def test_behind_tls_what_binds_the_way_back_says_so(
    engine: AsyncEngine, known: Settings
) -> None:
    async with visitor(engine, known) as browser:
        answer = await browser.get(f"{SITE.replace('http', 'https')}/login/oidc")
        [shown] = answer.headers.get_list("set-cookie")
        assert shown.startswith("__Secure-sign_in=")
        assert "; secure" in shown.lower()
        state = parse_qs(urlsplit(answer.headers["location"]).query)["state"][0]
        back = f"{CALLBACK.replace('http', 'https', 1)}?state={state}&error=access_denied"
        with capture_logs() as logs:
            answer = await browser.get(back)
        assert "refused_there" in [each.get("reason") for each in logs]
        [gone] = answer.headers.get_list("set-cookie")
        assert gone.startswith('__Secure-sign_in="";')


async def test_the_way_there_leads_back_to_our_own_pages_alone(
    browser: httpx.AsyncClient,
) -> None:
    for back in ("//evil.example", "https://evil.example/", "/\\evil.example"):
        answer = await browser.get(await leave(browser, "vera", back))
        assert answer.headers["location"] == "/"


async def test_what_binds_the_way_back_is_for_this_way_alone(browser: httpx.AsyncClient) -> None:
    answer = await browser.get("/login/oidc")
    [cookie] = answer.headers.get_list("set-cookie")
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/login/oidc", "max-age=600"} <= parts
    state = parse_qs(urlsplit(answer.headers["location"]).query)["state"][0]
    assert cookie.startswith(f"sign_in={state};")


async def test_ways_there_are_begun_no_faster_than_people_do(browser: httpx.AsyncClient) -> None:
    answers = [await browser.get("/login/oidc") for _ in range(30)]
    statuses = [answer.status_code for answer in answers]
    assert 303 in statuses
    assert 429 in statuses
    slow = next(a for a in answers if a.status_code == 429)
    assert slow.headers["retry-after"] == "1"
    said = " ".join(slow.text.split())
    assert "Too much at once" in said
    assert "Too many sign-ins at once from your network." in said
    assert "Try again in 1 second." in said
    assert (await browser.get(CALLBACK)).status_code == 429


async def test_ways_are_counted_by_network_and_back_too(
    engine: AsyncEngine, known: Settings
) -> None:
    app = create_app(engine, settings=known)

    async def status(address: str) -> int:
        transport = inside(app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, headers=AT_THE_PROVIDER) as browser:
            return (await browser.get(CALLBACK)).status_code

    found = [await status(f"2001:db8::{n:x}") for n in range(30)]
    assert set(found) == {403, 429}
    assert await status("2001:db8:0:1::1") == 403


async def test_there_is_no_way_there_unless_a_provider_is_set(
    engine: AsyncEngine, known: Settings
) -> None:
    for settings in (Settings(), msgspec.structs.replace(known, auth="none")):
        async with visitor(engine, settings) as browser:
            assert (await browser.get("/login/oidc")).status_code == 404
            assert (await browser.get("/login/oidc/callback?state=x&code=x")).status_code == 404
            assert "/login/oidc" not in (await browser.get("/login")).text
