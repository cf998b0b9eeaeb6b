"""Signing in and out, the user's own profile, and the management of users, without a browser."""

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
NEW_PASSWORD = "another long one"  # noqa: S105  # used in tests alone
CHANGE_PASSWORD_FORM = {
    "current_password": PASSWORD,
    "password": NEW_PASSWORD,
    "repeated_password": NEW_PASSWORD,
}
"""The valid form with which a user changes their own password."""
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")


async def create_user(engine: AsyncEngine, name: str = "ann", role: Role = "viewer") -> int:
    """Create a user who can sign in with `PASSWORD`; return the id."""
    new = NewUser(name=name, role=role, password=PASSWORD)
    return (await service.create_user(engine, new, COMMAND_LINE)).id


async def sign_in(
    browser: httpx.AsyncClient, name: str = "ann", password: str = PASSWORD, return_path: str = "/"
) -> httpx.Response:
    """Submit the sign-in form; the status is 303 if the user is signed in."""
    form = {"name": name, "password": password, "return_path": return_path}
    return await browser.post("/login", data=form)


async def is_signed_in(browser: httpx.AsyncClient) -> bool:
    """Return whether the overview is shown; else it redirects to the sign-in form."""
    return (await browser.get("/")).status_code == 200


async def get_html(browser: httpx.AsyncClient, path: str, status: int = 200) -> str:
    """Return the HTML of a page, with every run of blanks as one space."""
    response = await browser.get(path)
    assert response.status_code == status, response.text
    return " ".join(response.text.split())


async def test_the_sign_in_form_redirects_back_to_the_requested_page(engine: AsyncEngine) -> None:
    await create_user(engine)
    browser = create_browser(engine)
    response = await browser.get("/mailings?status=running&search=a%26b")
    assert response.status_code == 303
    form_path = response.headers["location"]
    assert form_path.startswith("/login?return_path=/mailings%3Fstatus")
    page = await get_html(browser, form_path)
    assert 'name="return_path" value="/mailings?status=running&amp;search=a%26b"' in page

    response = await sign_in(browser, return_path="/mailings?status=running&search=a%26b")
    assert response.status_code == 303
    assert response.headers["location"] == "/mailings?status=running&search=a%26b"
    assert "ann" in await get_html(browser, response.headers["location"])


async def test_the_sign_in_page_redirects_a_user_who_is_signed_in(engine: AsyncEngine) -> None:
    browser = await signed_in_browser(engine, "viewer")
    response = await browser.get("/login?return_path=/clients")
    assert response.headers["location"] == "/clients"


async def test_the_session_cookie_is_for_this_host_and_hidden_from_scripts(
    engine: AsyncEngine,
) -> None:
    await create_user(engine)
    cookie = (await sign_in(create_browser(engine))).headers["set-cookie"]
    assert re.fullmatch(r"session=[\w-]{43}; HttpOnly; Path=/; SameSite=lax", cookie)

    browser = create_browser(engine)
    browser.base_url = httpx.URL("https://mailer")
    cookie_with_tls = (await sign_in(browser)).headers["set-cookie"]
    assert cookie_with_tls.startswith("__Host-session=")
    assert "Secure" in cookie_with_tls
    assert "Domain" not in cookie_with_tls


async def test_sessions_of_two_instances_on_one_host_do_not_collide(
    engine: AsyncEngine,
) -> None:
    """Browsers send a cookie to every port of a host, so its name contains the database."""
    await create_user(engine)
    cookies = httpx.Cookies()
    database_fingerprints = ("0a1b2c3d", "4e5f6a7b")
    for fingerprint in database_fingerprints:
        app = create_app(engine, settings=Settings())
        app.state.database_fingerprint = fingerprint
        async with httpx.AsyncClient(
            transport=inside(app), base_url="http://mailer", headers=BROWSER, cookies=cookies
        ) as browser:
            assert (await browser.get("/clients")).status_code == 303
            assert (await sign_in(browser)).status_code == 303
            assert (await browser.get("/clients")).status_code == 200
            cookies = browser.cookies
    assert {f"session-{fingerprint}" for fingerprint in database_fingerprints} <= set(cookies)


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
    first_cookie = browser.cookies["session"]
    assert first_cookie != "chosen-by-somebody-else"
    await sign_in(browser)
    assert browser.cookies["session"] != first_cookie
    assert not await is_signed_in(create_browser(engine, secret=first_cookie))
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
    assert not await is_signed_in(create_browser(engine, secret=secret))
    assert await value(engine, "SELECT count(*) FROM session") == 0
    assert (await browser.post("/logout")).status_code == 303  # once more has no effect


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
    texts = set()
    for name in ("ann", "bob"):
        response = await sign_in(create_browser(engine), name, "not this one")
        assert response.status_code == 400
        assert "not this one" not in response.text
        assert "set-cookie" not in response.headers
        texts.add(visible_text(response.text.replace(name, "NAME")))
    assert len(texts) == 1
    assert "The name or the password is wrong." in texts.pop()


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
    response = await create_browser(engine).post(
        "/clients/import", content="phone", headers=headers
    )
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
    (session_there,) = re.findall('name="session" value="([0-9a-f]{64})"', page)

    response = await here.post("/profile/sessions", data={"session": session_there})
    assert response.headers["location"] == "/profile"
    assert not await is_signed_in(there)
    assert await is_signed_in(here)


async def test_ending_an_ended_session_says_so(engine: AsyncEngine) -> None:
    browser = await signed_in_browser(engine, "viewer")
    response = await browser.post("/profile/sessions", data={"session": "00" * 32})
    assert response.headers["location"] == "/profile"
    assert "This session had already ended." in await get_html(browser, "/profile")


async def test_the_list_of_users_is_paginated(engine: AsyncEngine) -> None:
    admin = await signed_in_browser(engine, "admin")
    await execute(
        engine,
        "INSERT INTO app_user (name, role, password_hash) SELECT 'p' || n, 'viewer', 'no hash'"
        " FROM generate_series(1, 101) AS n",
    )
    first_page = await get_html(admin, "/users")
    assert ">p101<" in first_page
    assert ">p1<" not in first_page
    assert "102 users" in first_page
    (older_link,) = re.findall('href="([^"]+)" rel="next"', first_page)
    second_page = await get_html(admin, older_link)
    assert ">p1<" in second_page
    assert ">admin<" in second_page


async def test_the_error_of_the_role_links_to_the_field(engine: AsyncEngine) -> None:
    admin = await signed_in_browser(engine, "admin")
    response = await admin.post("/users/new", data={"name": "bob", "role": "root"})
    assert 'href="#role"' in response.text
    assert 'id="role"' in response.text


async def test_a_user_cannot_end_the_session_of_another_user(engine: AsyncEngine) -> None:
    ann = await signed_in_browser(engine, "viewer", "ann")
    bob = await signed_in_browser(engine, "admin", "bob")
    bobs_session = await value(
        engine,
        "SELECT encode(digest, 'hex') FROM session JOIN app_user ON id = user_id"
        " WHERE name = 'bob'",
    )
    response = await ann.post("/profile/sessions", data={"session": bobs_session})
    assert response.status_code == 303
    assert await is_signed_in(bob)


async def test_a_malformed_session_is_400(engine: AsyncEngine) -> None:
    browser = await signed_in_browser(engine, "viewer")
    response = await browser.post("/profile/sessions", data={"session": "no"})
    assert response.status_code == 400


async def test_signing_out_everywhere_ends_all_sessions_including_this_one(
    engine: AsyncEngine,
) -> None:
    await create_user(engine)
    here, there = create_browser(engine), create_browser(engine)
    await sign_in(here)
    await sign_in(there)
    assert (await here.post("/profile/sessions")).headers["location"] == "/login"
    assert not await is_signed_in(here)
    assert not await is_signed_in(there)


@pytest.mark.parametrize(
    ("changed_fields", "wrong_field"),
    [
        ({"current_password": "wrong"}, "current_password"),
        ({"password": "short", "repeated_password": "short"}, "password"),
        ({"repeated_password": "something else"}, "repeated_password"),
    ],
)
async def test_an_invalid_change_of_the_own_password_is_an_error_beside_the_field(
    engine: AsyncEngine, changed_fields: dict[str, str], wrong_field: str
) -> None:
    await create_user(engine)
    browser = create_browser(engine)
    await sign_in(browser)
    form = CHANGE_PASSWORD_FORM | changed_fields
    response = await browser.post("/profile/password", data=form)
    assert response.status_code == 400
    assert f'id="{wrong_field}-error"' in response.text
    assert NEW_PASSWORD not in response.text
    assert PASSWORD not in response.text


async def test_changing_the_own_password_ends_the_other_sessions(engine: AsyncEngine) -> None:
    await create_user(engine)
    here, there = create_browser(engine), create_browser(engine)
    await sign_in(here)
    await sign_in(there)
    response = await here.post("/profile/password", data=CHANGE_PASSWORD_FORM)
    assert response.status_code == 303
    assert await is_signed_in(here)
    assert not await is_signed_in(there)
    assert (await sign_in(there)).status_code == 400
    assert (await sign_in(there, password=NEW_PASSWORD)).status_code == 303


async def test_guesses_of_the_current_password_in_a_session_are_limited(
    engine: AsyncEngine,
) -> None:
    await create_user(engine)
    browser = create_browser(engine)
    await sign_in(browser)
    form = CHANGE_PASSWORD_FORM | {"current_password": "wrong"}
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
    ("changed_fields", "status", "wrong_field"),
    [
        ({"name": ""}, 400, "name"),
        ({"name": "Admin"}, 409, "name"),  # used by the admin
        ({"name": "a\x1b[2Jb"}, 400, "name"),
        ({"name": "a\u202eb"}, 400, "name"),
        ({"role": "root"}, 400, "role"),
        ({"role": ""}, 400, "role"),
        ({"password": "short", "repeated_password": "short"}, 400, "password"),
        # resembles the name
        ({"password": "annabel lee 1", "repeated_password": "annabel lee 1"}, 400, "password"),
        ({"repeated_password": "something else"}, 400, "repeated_password"),
    ],
)
async def test_an_invalid_new_user_is_an_error_beside_the_field(
    engine: AsyncEngine, changed_fields: dict[str, str], status: int, wrong_field: str
) -> None:
    admin = await signed_in_browser(engine, "admin")
    valid_form = {
        "name": "Annabel Lee 1",
        "role": "viewer",
        "password": PASSWORD,
        "repeated_password": PASSWORD,
    }
    response = await admin.post("/users/new", data=valid_form | changed_fields)
    assert response.status_code == status
    assert f'id="{wrong_field}-error"' in response.text
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
    assert not await is_signed_in(browser)

    await sign_in(browser)
    assert (await admin.post(f"{path}/disable")).status_code == 303
    assert "Disabled since" in await get_html(admin, path)
    assert not await is_signed_in(browser)
    assert (await sign_in(browser)).status_code == 400

    assert (await admin.post(f"{path}/enable")).status_code == 303
    assert (await sign_in(browser)).status_code == 303

    form = {"password": NEW_PASSWORD, "repeated_password": NEW_PASSWORD}
    assert (await admin.post(f"{path}/password", data=form)).status_code == 303
    assert not await is_signed_in(browser)
    assert (await sign_in(browser, password=NEW_PASSWORD)).status_code == 303


async def test_on_their_own_user_page_admins_can_change_nothing(
    engine: AsyncEngine,
) -> None:
    admin = await signed_in_browser(engine, "admin")
    own_id = await value(engine, "SELECT id FROM app_user")
    page = await get_html(admin, f"/users/{own_id}")
    assert "This is you." in page
    assert not re.search("/role|/disable|/password", page)
    form = {"password": PASSWORD, "repeated_password": PASSWORD, "role": "viewer"}
    for verb in ("role", "disable", "password"):
        response = await admin.post(f"/users/{own_id}/{verb}", data=form)
        assert response.status_code == 409
        assert "another admin" in response.text


@pytest.mark.parametrize("verb", ["role", "password", "disable", "enable", "sign-out"])
async def test_an_unknown_user_is_404(engine: AsyncEngine, verb: str) -> None:
    admin = await signed_in_browser(engine, "admin")
    form = {"role": "viewer", "password": PASSWORD, "repeated_password": PASSWORD}
    assert (await admin.post(f"/users/999/{verb}", data=form)).status_code == 404
