"""Signing in and out, the own user page, and the management of users, in a browser."""

import re

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, HOSTILE, create_browser, signed_in_browser
from tests.api.forms import visible_text
from tests.asgi_client import inside
from tests.factories import OPEN, execute, value

from mailer.access import service
from mailer.access.model import COMMAND_LINE
from mailer.access.users import NewUser
from mailer.app import create_app
from mailer.db.database_info import get_fingerprint
from mailer.roles import Role
from mailer.settings import Settings

PASSWORD = "correct horse battery"  # noqa: S105  # used in tests alone
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")


async def create_user(engine: AsyncEngine, name: str = "ann", role: Role = "viewer") -> int:
    new = NewUser(name=name, role=role, password=PASSWORD)
    return (await service.create_user(engine, new, COMMAND_LINE)).id


async def sign_in(
    browser: httpx.AsyncClient, name: str = "ann", password: str = PASSWORD, return_path: str = "/"
) -> httpx.Response:
    form = {"name": name, "password": password, "return_path": return_path}
    return await browser.post("/login", data=form)


async def get_html(browser: httpx.AsyncClient, path: str, status: int = 200) -> str:
    response = await browser.get(path)
    assert response.status_code == status, response.text
    return " ".join(response.text.split())


async def test_the_sign_in_form_redirects_back_to_the_requested_page(engine: AsyncEngine) -> None:
    await create_user(engine)
    browser = create_browser(engine)
    response = await browser.get("/mailings?status=running&search=a%26b")
    assert response.status_code == 303
    form = response.headers["location"]
    assert form.startswith("/login?return_path=/mailings%3Fstatus")
    page = await get_html(browser, form)
    assert 'name="return_path" value="/mailings?status=running&amp;search=a%26b"' in page
    response = await sign_in(browser, return_path="/mailings?status=running&search=a%26b")
    assert response.status_code == 303
    assert response.headers["location"] == "/mailings?status=running&search=a%26b"
    assert "ann" in await get_html(browser, response.headers["location"])
    assert (await browser.get("/login?return_path=/clients")).headers["location"] == "/clients"


async def test_the_session_cookie_is_for_this_host_and_hidden_from_scripts(
    engine: AsyncEngine,
) -> None:
    await create_user(engine)
    plain = (await sign_in(create_browser(engine))).headers["set-cookie"]
    assert re.fullmatch(r"session=[\w-]{43}; HttpOnly; Path=/; SameSite=lax", plain)
    browser = create_browser(engine)
    browser.base_url = httpx.URL("https://mailer")
    behind_tls = (await sign_in(browser)).headers["set-cookie"]
    assert behind_tls.startswith("__Host-session=")
    assert "Secure" in behind_tls
    assert "Domain" not in behind_tls


async def test_sessions_of_two_instances_on_one_host_do_not_collide(
    engine: AsyncEngine,
) -> None:
    await create_user(engine)
    jar = httpx.Cookies()
    for fingerprint in ("0a1b2c3d", "4e5f6a7b"):  # browsers send cookies to every port of a host
        app = create_app(engine, settings=Settings())
        app.state.database_mark = fingerprint
        async with httpx.AsyncClient(
            transport=inside(app), base_url="http://mailer", headers=BROWSER, cookies=jar
        ) as browser:
            assert (await browser.get("/clients")).status_code == 303
            assert (await sign_in(browser)).status_code == 303
            assert (await browser.get("/clients")).status_code == 200
            jar = browser.cookies
    assert {f"session-{fingerprint}" for fingerprint in ("0a1b2c3d", "4e5f6a7b")} <= set(jar)


async def test_the_fingerprint_of_a_database_is_stable(engine: AsyncEngine) -> None:
    async with engine.connect() as one, engine.connect() as other:
        fingerprints = {await get_fingerprint(one), await get_fingerprint(other)}
    assert len(fingerprints) == 1
    assert re.fullmatch("[0-9a-f]{8}", fingerprints.pop())


async def test_each_sign_in_creates_a_new_session_and_ends_the_previous_one(
    engine: AsyncEngine,
) -> None:
    await create_user(engine)
    browser = create_browser(engine, secret="chosen-by-somebody-else")  # noqa: S106  # used in tests alone
    await sign_in(browser)
    first = browser.cookies["session"]
    assert first != "chosen-by-somebody-else"
    await sign_in(browser)
    assert browser.cookies["session"] != first
    assert (await create_browser(engine, secret=first).get("/")).status_code == 303
    assert await value(engine, "SELECT count(*) FROM session") == 1


async def test_signing_out_ends_the_session_and_removes_the_cookie(engine: AsyncEngine) -> None:
    await create_user(engine)
    browser = create_browser(engine)
    await sign_in(browser)
    secret = browser.cookies["session"]
    response = await browser.post("/logout")
    assert response.headers["location"] == "/login"
    assert "session" not in browser.cookies
    assert "You are signed out." in await get_html(browser, "/login")
    assert (await create_browser(engine, secret=secret).get("/")).status_code == 303
    assert await value(engine, "SELECT count(*) FROM session") == 0
    assert (await browser.post("/logout")).status_code == 303


@pytest.mark.parametrize(
    "return_path",
    ["//evil.example", "https://evil.example", "/\\evil.example", "/\t/evil.example", "\n", "evil"],
)
async def test_signing_in_redirects_to_no_other_site(engine: AsyncEngine, return_path: str) -> None:
    await create_user(engine)
    response = await sign_in(create_browser(engine), return_path=return_path)
    assert response.headers["location"] == "/"


async def test_a_wrong_password_and_an_unknown_name_have_the_same_response(
    engine: AsyncEngine,
) -> None:
    await create_user(engine)
    responses = set()
    for name in ("ann", "bob"):
        response = await sign_in(create_browser(engine), name, "not this one")
        assert response.status_code == 400
        assert "not this one" not in response.text
        assert "set-cookie" not in response.headers
        responses.add(visible_text(response.text.replace(name, "NAME")))
    assert len(responses) == 1
    assert "The name or the password is wrong." in responses.pop()


async def test_too_many_wrong_passwords_are_429_even_with_the_right_password(
    engine: AsyncEngine,
) -> None:
    await create_user(engine)
    browser = create_browser(engine)
    statuses = [(await sign_in(browser, password="wrong")).status_code for _ in range(6)]  # noqa: S106  # used in tests alone
    assert statuses == [400] * 5 + [429]
    response = await sign_in(browser)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert "Too many wrong passwords. Try again in 1 second." in visible_text(response.text)
    assert await value(engine, "SELECT count(*) FROM audit WHERE action = 'sign_in_failed'") == 5
    await execute(engine, "UPDATE login_throttle SET blocked_until = now()")
    assert (await sign_in(browser)).status_code == 303


async def test_the_sign_in_form_refuses_cross_site_requests(engine: AsyncEngine) -> None:
    await create_user(engine)
    browser = create_browser(engine)
    browser.headers["Sec-Fetch-Site"] = "cross-site"
    assert (await sign_in(browser)).status_code == 403
    assert (await browser.post("/logout")).status_code == 403


async def test_an_htmx_request_without_a_session_is_redirected_to_the_form(
    engine: AsyncEngine,
) -> None:
    browser = create_browser(engine)
    headers = {"HX-Request": "true", "HX-Current-URL": "http://mailer/mailings/1?a=b"}
    response = await browser.get("/mailings/1/pause", headers=headers)
    assert response.status_code == 401
    assert response.headers["hx-redirect"] == "/login?return_path=/mailings/1%3Fa%3Db"
    headers["HX-Current-URL"] = "https://evil.example/x"
    response = await browser.get("/mailings/1/pause", headers=headers)
    assert response.headers["hx-redirect"] == "/login"


async def test_live_streams_and_programs_without_a_session_get_401(engine: AsyncEngine) -> None:
    browser = create_browser(engine)
    response = await browser.get("/live/overview", headers={"Accept": "text/event-stream"})
    assert response.status_code == 401
    response = await browser.get("/mailings", headers={"Accept": "*/*"})
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"


async def test_an_upload_without_a_session_is_401(engine: AsyncEngine) -> None:
    headers = {"Content-Type": "text/csv", "Accept": "text/html"}
    response = await create_browser(engine).post("/clients/import", content="phone", headers=headers)
    assert response.status_code == 401
    assert "Sign in first." in visible_text(response.text)


async def test_a_form_sent_without_a_session_redirects_back_to_its_page(
    engine: AsyncEngine,
) -> None:
    browser = create_browser(engine)
    referer = {"Referer": "http://mailer/mailings/new?from=1"}
    response = await browser.post("/mailings/new", headers=referer)
    assert response.headers["location"] == "/login?return_path=/mailings/new%3Ffrom%3D1"
    for wrong in ("https://evil.example/x", "http://mailer//evil.example", "http://[", ""):
        response = await browser.post("/mailings/new", headers={"Referer": wrong})
        assert response.headers["location"] == "/login"


async def test_metrics_with_a_token_do_not_redirect_to_the_sign_in_form(
    engine: AsyncEngine,
) -> None:
    browser = create_browser(engine, Settings(monitoring_token="t"))  # noqa: S106  # used in tests alone
    assert (await browser.get("/metrics")).status_code == 401


async def test_pages_link_to_metrics_only_when_no_token_is_needed(engine: AsyncEngine) -> None:
    link = 'href="/metrics"'
    assert link not in await get_html(create_browser(engine), "/login")
    assert link in await get_html(await signed_in_browser(engine, "viewer"), "/")
    with_token = Settings(monitoring_token="t")  # noqa: S106  # used in tests alone
    admin = await signed_in_browser(engine, "admin", settings=with_token)
    for path in ("/", "/system"):
        assert link not in await get_html(admin, path)


@pytest.mark.parametrize(
    ("role", "path", "sentence"),
    [
        ("viewer", "/mailings/new", "Only an operator or an admin may do this."),
        ("operator", "/system", "Only an admin may do this."),
        ("operator", "/users", "Only an admin may do this."),
    ],
)
async def test_a_refused_page_names_the_required_role(
    engine: AsyncEngine, role: Role, path: str, sentence: str
) -> None:
    page = visible_text(await get_html(await signed_in_browser(engine, role), path, 403))
    assert "You are not allowed to do this" in page
    assert sentence in page
    assert f"You are signed in as {role}. Your role: {role.capitalize()}." in page


@pytest.mark.parametrize("role", ROLES)
async def test_the_header_shows_the_user_and_links_that_the_role_allows(
    engine: AsyncEngine, role: Role
) -> None:
    page = await get_html(await signed_in_browser(engine, role, "somebody"), "/")
    header = page[page.index("<header>") : page.index("</header>")]
    assert '<a href="/profile">somebody</a> <button>Sign out</button>' in header
    assert ('href="/system"' in header) == ('href="/users"' in header) == (role == "admin")


async def test_without_auth_there_are_no_pages_of_users(engine: AsyncEngine) -> None:
    browser = create_browser(engine, OPEN)
    page = await get_html(browser, "/")
    assert not re.search("Sign out|/profile|/users|/login", page)
    for path in ("/profile", "/users", "/users/new", "/users/1", "/nothing"):
        response = await browser.get(path)
        assert response.status_code == 404
        assert '<a href="/mailings">Mailings</a>' in response.text
    assert (await browser.get("/login")).headers["location"] == "/"
    assert (await sign_in(browser)).headers["location"] == "/"


async def test_the_sign_in_form_links_to_the_provider_if_there_is_one(engine: AsyncEngine) -> None:
    assert "/login/oidc" not in await get_html(create_browser(engine), "/login")
    settings = Settings(oidc_issuer="https://id.example/realm", oidc_client_id="mailer")
    page = await get_html(create_browser(engine, settings), "/login?return_path=/clients")
    assert (
        '<a class="button" href="/login/oidc?return_path=%2Fclients">Sign in with id.example</a>'
        in page
    )


async def test_a_user_sees_their_own_sessions_and_ends_one(engine: AsyncEngine) -> None:
    await create_user(engine)
    here, there = create_browser(engine), create_browser(engine)
    here.headers["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0"
    await sign_in(here)
    await sign_in(there)
    page = await get_html(here, "/profile")
    assert "Firefox, Linux" in page
    assert "127.0.0.1" in page
    assert page.count("this browser") == 1
    (other,) = re.findall('name="session" value="([0-9a-f]{64})"', page)
    response = await here.post("/profile/sessions", data={"session": other})
    assert response.headers["location"] == "/profile"
    assert (await there.get("/")).status_code == 303
    assert (await here.get("/")).status_code == 200


async def test_ending_an_ended_session_is_refused(engine: AsyncEngine) -> None:
    browser = await signed_in_browser(engine, "viewer")
    response = await browser.post("/profile/sessions", data={"session": "00" * 32})
    assert response.headers["location"] == "/profile"
    assert "This session had already ended." in await get_html(browser, "/profile")


async def test_the_list_of_users_is_paginated(engine: AsyncEngine) -> None:
    admin = await signed_in_browser(engine, "admin")
    await execute(
        engine,
        "INSERT INTO app_user (name, role, password_hash) SELECT 'p' || n, 'viewer', 'none fits'"
        " FROM generate_series(1, 101) AS n",
    )
    first = await get_html(admin, "/users")
    assert ">p101<" in first
    assert ">p1<" not in first
    assert "102 users" in first
    (older,) = re.findall('href="([^"]+)" rel="next"', first)
    second = await get_html(admin, older)
    assert ">p1<" in second
    assert ">admin<" in second


async def test_the_error_of_the_role_links_to_the_field(engine: AsyncEngine) -> None:
    admin = await signed_in_browser(engine, "admin")
    response = await admin.post("/users/new", data={"name": "bob", "role": "root"})
    assert 'href="#role"' in response.text
    assert 'id="role"' in response.text


async def test_a_user_cannot_end_the_session_of_another_user(engine: AsyncEngine) -> None:
    ann, bob = (
        await signed_in_browser(engine, "viewer", "ann"),
        await signed_in_browser(engine, "admin", "bob"),
    )
    digest = await value(
        engine,
        "SELECT encode(digest, 'hex') FROM session JOIN app_user ON id = user_id"
        " WHERE name = 'bob'",
    )
    assert (await ann.post("/profile/sessions", data={"session": digest})).status_code == 303
    assert (await bob.get("/")).status_code == 200
    assert (await ann.post("/profile/sessions", data={"session": "no"})).status_code == 400


async def test_signing_out_everywhere_ends_all_sessions_including_this_one(
    engine: AsyncEngine,
) -> None:
    await create_user(engine)
    here, there = create_browser(engine), create_browser(engine)
    await sign_in(here)
    await sign_in(there)
    assert (await here.post("/profile/sessions")).headers["location"] == "/login"
    for browser in (here, there):
        assert (await browser.get("/")).status_code == 303


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"current_password": "wrong"}, "current_password"),
        ({"password": "short", "repeated_password": "short"}, "password"),
        ({"repeated_password": "something else"}, "repeated_password"),
    ],
)
async def test_an_invalid_change_of_the_own_password_is_an_error_beside_the_field(
    engine: AsyncEngine, form: dict[str, str], field: str
) -> None:
    await create_user(engine)
    browser = create_browser(engine)
    await sign_in(browser)
    whole = {
        "current_password": PASSWORD,
        "password": "another long one",
        "repeated_password": "another long one",
    }
    response = await browser.post("/profile/password", data=whole | form)
    assert response.status_code == 400
    assert f'id="{field}-error"' in response.text
    assert "another long one" not in response.text
    assert PASSWORD not in response.text


async def test_changing_the_own_password_ends_the_other_sessions(engine: AsyncEngine) -> None:
    await create_user(engine)
    here, there = create_browser(engine), create_browser(engine)
    await sign_in(here)
    await sign_in(there)
    form = {
        "current_password": PASSWORD,
        "password": "another long one",
        "repeated_password": "another long one",
    }
    assert (await here.post("/profile/password", data=form)).status_code == 303
    assert (await here.get("/")).status_code == 200
    assert (await there.get("/")).status_code == 303
    assert (await sign_in(there)).status_code == 400
    assert (await sign_in(there, password="another long one")).status_code == 303  # noqa: S106  # used in tests alone


async def test_guesses_of_the_current_password_in_a_session_are_limited(
    engine: AsyncEngine,
) -> None:
    await create_user(engine)
    browser = create_browser(engine)
    await sign_in(browser)
    form = {
        "current_password": "wrong",
        "password": "another long one",
        "repeated_password": "another long one",
    }
    responses = [await browser.post("/profile/password", data=form) for _ in range(6)]
    assert [response.status_code for response in responses] == [400] * 5 + [429]
    assert responses[-1].headers["retry-after"] == "1"
    assert "Too many wrong passwords" in responses[-1].text


async def test_an_admin_creates_a_user_who_can_sign_in(engine: AsyncEngine) -> None:
    admin = await signed_in_browser(engine, "admin")
    form = {
        "name": " Bob ",
        "role": "operator",
        "password": PASSWORD,
        "repeated_password": PASSWORD,
    }
    response = await admin.post("/users/new", data=form)
    assert response.status_code == 303, visible_text(response.text)
    page = visible_text(await get_html(admin, response.headers["location"]))
    assert "The user is created." in page
    assert "Role: Operator." in page
    assert "Has never signed in." in page
    assert (await sign_in(create_browser(engine), "bob")).status_code == 303
    assert "Bob Operator" in visible_text(await get_html(admin, "/users"))


@pytest.mark.parametrize(
    ("form", "status", "field"),
    [
        ({"name": ""}, 400, "name"),
        ({"name": "Admin"}, 409, "name"),
        ({"name": "a\x1b[2Jb"}, 400, "name"),
        ({"name": "a\u202eb"}, 400, "name"),
        ({"role": "root"}, 400, "role"),
        ({"role": ""}, 400, "role"),
        ({"password": "short", "repeated_password": "short"}, 400, "password"),
        ({"password": "annabel lee 1", "repeated_password": "annabel lee 1"}, 400, "password"),
        ({"repeated_password": "something else"}, 400, "repeated_password"),
    ],
)
async def test_an_invalid_new_user_is_an_error_beside_the_field(
    engine: AsyncEngine, form: dict[str, str], status: int, field: str
) -> None:
    admin = await signed_in_browser(engine, "admin")
    whole = {
        "name": "Annabel Lee 1",
        "role": "viewer",
        "password": PASSWORD,
        "repeated_password": PASSWORD,
    }
    response = await admin.post("/users/new", data=whole | form)
    assert response.status_code == status
    assert f'id="{field}-error"' in response.text
    assert PASSWORD not in response.text


async def test_hostile_user_names_are_escaped(engine: AsyncEngine) -> None:
    user_id = await create_user(engine, HOSTILE)
    admin = await signed_in_browser(engine, "admin", "<b>admin</b>")
    for path in ("/users", f"/users/{user_id}"):
        page = await get_html(admin, path)
        assert "<script>alert" not in page
        assert "<b>admin" not in page


async def test_changes_by_an_admin_apply_at_once(engine: AsyncEngine) -> None:
    admin = await signed_in_browser(engine, "admin")
    user_id = await create_user(engine)
    browser = create_browser(engine)
    await sign_in(browser)
    path = f"/users/{user_id}"
    assert (await admin.post(f"{path}/role", data={"role": "operator"})).status_code == 303
    assert (await browser.get("/mailings/new")).status_code == 200
    assert (await admin.post(f"{path}/sign-out")).status_code == 303
    assert (await browser.get("/")).status_code == 303
    await sign_in(browser)
    assert (await admin.post(f"{path}/disable")).status_code == 303
    assert "Disabled since" in await get_html(admin, path)
    assert (await browser.get("/")).status_code == 303
    assert (await sign_in(browser)).status_code == 400
    assert (await admin.post(f"{path}/enable")).status_code == 303
    assert (await sign_in(browser)).status_code == 303
    form = {"password": "another long one", "repeated_password": "another long one"}
    assert (await admin.post(f"{path}/password", data=form)).status_code == 303
    assert (await browser.get("/")).status_code == 303
    assert (await sign_in(browser, password="another long one")).status_code == 303  # noqa: S106  # used in tests alone


async def test_admins_can_change_neither_their_own_role_nor_password_as_admins(
    engine: AsyncEngine,
) -> None:
    admin = await signed_in_browser(engine, "admin")
    own = await value(engine, "SELECT id FROM app_user")
    page = await get_html(admin, f"/users/{own}")
    assert "This is you." in page
    assert not re.search("/role|/disable|/password", page)
    form = {"password": PASSWORD, "repeated_password": PASSWORD, "role": "viewer"}
    for verb in ("role", "disable", "password"):
        response = await admin.post(f"/users/{own}/{verb}", data=form)
        assert response.status_code == 409
        assert "another admin" in response.text


@pytest.mark.parametrize("verb", ["role", "password", "disable", "enable", "sign-out"])
async def test_an_unknown_user_is_404(engine: AsyncEngine, verb: str) -> None:
    admin = await signed_in_browser(engine, "admin")
    form = {"role": "viewer", "password": PASSWORD, "repeated_password": PASSWORD}
    assert (await admin.post(f"/users/999/{verb}", data=form)).status_code == 404
