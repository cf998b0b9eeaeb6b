"""Signing in and out, one's own account, and the accounts of others, as a browser sees them."""

import re

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.forms import said
from tests.api.visits import BROWSER, HOSTILE, signed_in, visitor
from tests.asked import inside
from tests.sample import OPEN, execute, value

from mailer.access import service
from mailer.access.accounts import NewAccount
from mailer.access.model import COMMAND_LINE
from mailer.app import create_app
from mailer.db.facts import mark
from mailer.settings import Role, Settings

PASSWORD = "correct horse battery"  # noqa: S105  # of a test
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")


async def add(engine: AsyncEngine, name: str = "ann", role: Role = "viewer") -> int:
    new = NewAccount(name=name, role=role, password=PASSWORD)
    return (await service.add_account(engine, new, COMMAND_LINE)).id


async def sign_in(
    browser: httpx.AsyncClient, name: str = "ann", password: str = PASSWORD, back: str = "/"
) -> httpx.Response:
    form = {"name": name, "password": password, "back": back}
    return await browser.post("/login", data=form)


async def shown(browser: httpx.AsyncClient, path: str, status: int = 200) -> str:
    answer = await browser.get(path)
    assert answer.status_code == status, answer.text
    return " ".join(answer.text.split())


async def test_who_is_not_signed_in_is_led_to_the_form_and_back(engine: AsyncEngine) -> None:
    await add(engine)
    browser = visitor(engine)
    answer = await browser.get("/mailings?status=running&search=a%26b")
    assert answer.status_code == 303
    form = answer.headers["location"]
    assert form.startswith("/login?back=/mailings%3Fstatus")
    page = await shown(browser, form)
    assert 'name="back" value="/mailings?status=running&amp;search=a%26b"' in page
    answer = await sign_in(browser, back="/mailings?status=running&search=a%26b")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/mailings?status=running&search=a%26b"
    assert "ann" in await shown(browser, answer.headers["location"])
    assert (await browser.get("/login?back=/clients")).headers["location"] == "/clients"


async def test_cookie_of_a_session_is_for_this_host_and_no_script(engine: AsyncEngine) -> None:
    await add(engine)
    plain = (await sign_in(visitor(engine))).headers["set-cookie"]
    assert re.fullmatch(r"session=[\w-]{43}; HttpOnly; Path=/; SameSite=lax", plain)
    browser = visitor(engine)
    browser.base_url = httpx.URL("https://mailer")
    behind_tls = (await sign_in(browser)).headers["set-cookie"]
    assert behind_tls.startswith("__Host-session=")
    assert "Secure" in behind_tls
    assert "Domain" not in behind_tls


async def test_two_instances_on_one_host_sign_nobody_out_of_each_other(
    engine: AsyncEngine,
) -> None:
    await add(engine)
    jar = httpx.Cookies()
    for each in ("0a1b2c3d", "4e5f6a7b"):  # a browser sends both to each port of the host
        app = create_app(engine, settings=Settings())
        app.state.database_mark = each
        async with httpx.AsyncClient(
            transport=inside(app), base_url="http://mailer", headers=BROWSER, cookies=jar
        ) as browser:
            assert (await browser.get("/clients")).status_code == 303
            assert (await sign_in(browser)).status_code == 303
            assert (await browser.get("/clients")).status_code == 200
            jar = browser.cookies
    assert {f"session-{each}" for each in ("0a1b2c3d", "4e5f6a7b")} <= set(jar)


async def test_mark_of_a_database_stays(engine: AsyncEngine) -> None:
    async with engine.connect() as one, engine.connect() as other:
        marks = {await mark(one), await mark(other)}
    assert len(marks) == 1
    assert re.fullmatch("[0-9a-f]{8}", marks.pop())


async def test_session_is_new_at_each_sign_in_and_the_one_before_ends(engine: AsyncEngine) -> None:
    await add(engine)
    browser = visitor(engine, secret="chosen-by-somebody-else")  # noqa: S106  # of a test
    await sign_in(browser)
    first = browser.cookies["session"]
    assert first != "chosen-by-somebody-else"
    await sign_in(browser)
    assert browser.cookies["session"] != first
    assert (await visitor(engine, secret=first).get("/")).status_code == 303
    assert await value(engine, "SELECT count(*) FROM session") == 1


async def test_sign_out_ends_the_session_and_takes_the_cookie(engine: AsyncEngine) -> None:
    await add(engine)
    browser = visitor(engine)
    await sign_in(browser)
    secret = browser.cookies["session"]
    answer = await browser.post("/logout")
    assert answer.headers["location"] == "/login"
    assert "session" not in browser.cookies
    assert "You are signed out." in await shown(browser, "/login")
    assert (await visitor(engine, secret=secret).get("/")).status_code == 303
    assert await value(engine, "SELECT count(*) FROM session") == 0
    assert (await browser.post("/logout")).status_code == 303


@pytest.mark.parametrize(
    "back",
    ["//evil.example", "https://evil.example", "/\\evil.example", "/\t/evil.example", "\n", "evil"],
)
async def test_sign_in_leads_to_no_other_site(engine: AsyncEngine, back: str) -> None:
    await add(engine)
    answer = await sign_in(visitor(engine), back=back)
    assert answer.headers["location"] == "/"


async def test_wrong_password_is_said_in_the_words_of_an_unknown_name_and_not_typed_back(
    engine: AsyncEngine,
) -> None:
    await add(engine)
    told = set()
    for name in ("ann", "bob"):
        answer = await sign_in(visitor(engine), name, "not this one")
        assert answer.status_code == 400
        assert "not this one" not in answer.text
        assert "set-cookie" not in answer.headers
        told.add(said(answer.text.replace(name, "NAME")))
    assert len(told) == 1
    assert "The name or the password is wrong." in told.pop()


async def test_too_many_wrong_passwords_are_answered_429_without_a_look_at_the_password(
    engine: AsyncEngine,
) -> None:
    await add(engine)
    browser = visitor(engine)
    statuses = [(await sign_in(browser, password="wrong")).status_code for _ in range(6)]  # noqa: S106  # of a test
    assert statuses == [400] * 5 + [429]
    answer = await sign_in(browser)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert "Too many wrong passwords. Try again in 1 second." in said(answer.text)
    assert await value(engine, "SELECT count(*) FROM audit WHERE action = 'sign_in_failed'") == 5
    await execute(engine, "UPDATE throttle SET blocked_until = now()")
    assert (await sign_in(browser)).status_code == 303


async def test_form_of_another_site_signs_nobody_in(engine: AsyncEngine) -> None:
    await add(engine)
    browser = visitor(engine)
    browser.headers["Sec-Fetch-Site"] = "cross-site"
    assert (await sign_in(browser)).status_code == 403
    assert (await browser.post("/logout")).status_code == 403


async def test_script_that_meets_the_end_of_a_session_is_led_to_the_form(
    engine: AsyncEngine,
) -> None:
    browser = visitor(engine)
    headers = {"HX-Request": "true", "HX-Current-URL": "http://mailer/mailings/1?a=b"}
    answer = await browser.get("/mailings/1/pause", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["hx-redirect"] == "/login?back=/mailings/1%3Fa%3Db"
    headers["HX-Current-URL"] = "https://evil.example/x"
    answer = await browser.get("/mailings/1/pause", headers=headers)
    assert answer.headers["hx-redirect"] == "/login"


async def test_live_stream_and_programs_are_told_401(engine: AsyncEngine) -> None:
    browser = visitor(engine)
    answer = await browser.get("/live/overview", headers={"Accept": "text/event-stream"})
    assert answer.status_code == 401
    answer = await browser.get("/mailings", headers={"Accept": "*/*"})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"


async def test_file_that_is_sent_too_late_is_answered_401(engine: AsyncEngine) -> None:
    headers = {"Content-Type": "text/csv", "Accept": "text/html"}
    answer = await visitor(engine).post("/clients/import", content="phone", headers=headers)
    assert answer.status_code == 401
    assert "Sign in first." in said(answer.text)


async def test_form_that_was_sent_too_late_leads_back_to_its_page(engine: AsyncEngine) -> None:
    browser = visitor(engine)
    referer = {"Referer": "http://mailer/mailings/new?from=1"}
    answer = await browser.post("/mailings/new", headers=referer)
    assert answer.headers["location"] == "/login?back=/mailings/new%3Ffrom%3D1"
    for wrong in ("https://evil.example/x", "http://mailer//evil.example", "http://[", ""):
        answer = await browser.post("/mailings/new", headers={"Referer": wrong})
        assert answer.headers["location"] == "/login"


async def test_token_of_metrics_is_not_asked_for_by_the_form(engine: AsyncEngine) -> None:
    browser = visitor(engine, Settings(monitoring_token="t"))  # noqa: S106  # of a test
    assert (await browser.get("/metrics")).status_code == 401


async def test_pages_lead_to_metrics_where_they_open_for_who_looks(engine: AsyncEngine) -> None:
    link = 'href="/metrics"'
    assert link not in await shown(visitor(engine), "/login")
    assert link in await shown(await signed_in(engine, "viewer"), "/")
    guarded = Settings(monitoring_token="t")  # noqa: S106  # of a test
    admin = await signed_in(engine, "admin", settings=guarded)
    for path in ("/", "/system"):
        assert link not in await shown(admin, path)


@pytest.mark.parametrize(
    ("role", "path", "says"),
    [
        ("viewer", "/mailings/new", "the role of an operator or an admin"),
        ("operator", "/system", "the role of an admin"),
        ("operator", "/people", "the role of an admin"),
    ],
)
async def test_page_says_which_role_is_missing(
    engine: AsyncEngine, role: Role, path: str, says: str
) -> None:
    page = said(await shown(await signed_in(engine, role), path, 403))
    assert "You may not do this" in page
    assert says in page
    assert f"You are signed in as {role}. Your role: {role.capitalize()}." in page


@pytest.mark.parametrize("role", ROLES)
async def test_header_shows_who_is_signed_in_and_only_the_pages_they_may_see(
    engine: AsyncEngine, role: Role
) -> None:
    page = await shown(await signed_in(engine, role, "somebody"), "/")
    header = page[page.index("<header>") : page.index("</header>")]
    assert '<a href="/account">somebody</a> <button>Sign out</button>' in header
    assert ('href="/system"' in header) == ('href="/people"' in header) == (role == "admin")


async def test_where_nobody_is_asked_there_is_nothing_of_accounts(engine: AsyncEngine) -> None:
    browser = visitor(engine, OPEN)
    page = await shown(browser, "/")
    assert not re.search("Sign out|/account|/people|/login", page)
    for path in ("/account", "/people", "/people/new", "/people/1", "/nothing"):
        answer = await browser.get(path)
        assert answer.status_code == 404
        assert '<a href="/mailings">Mailings</a>' in answer.text
    assert (await browser.get("/login")).headers["location"] == "/"
    assert (await sign_in(browser)).headers["location"] == "/"


async def test_way_to_the_provider_is_shown_where_there_is_one(engine: AsyncEngine) -> None:
    assert "/login/oidc" not in await shown(visitor(engine), "/login")
    settings = Settings(oidc_issuer="https://id.example/realm")
    page = await shown(visitor(engine, settings), "/login?back=/clients")
    assert (
        '<a class="button" href="/login/oidc?back=%2Fclients">Sign in with id.example</a>' in page
    )


async def test_own_account_shows_its_sessions_and_ends_one(engine: AsyncEngine) -> None:
    await add(engine)
    here, there = visitor(engine), visitor(engine)
    here.headers["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0"
    await sign_in(here)
    await sign_in(there)
    page = await shown(here, "/account")
    assert "Firefox, Linux" in page
    assert "127.0.0.1" in page
    assert page.count("this browser") == 1
    (other,) = re.findall('name="session" value="([0-9a-f]{64})"', page)
    answer = await here.post("/account/sessions", data={"session": other})
    assert answer.headers["location"] == "/account"
    assert (await there.get("/")).status_code == 303
    assert (await here.get("/")).status_code == 200


async def test_session_that_was_over_is_not_said_to_end_now(engine: AsyncEngine) -> None:
    browser = await signed_in(engine, "viewer")
    answer = await browser.post("/account/sessions", data={"session": "00" * 32})
    assert answer.headers["location"] == "/account"
    assert "This session had ended already." in await shown(browser, "/account")


async def test_many_accounts_come_in_pages(engine: AsyncEngine) -> None:
    admin = await signed_in(engine, "admin")
    await execute(
        engine,
        "INSERT INTO account (name, role, password) SELECT 'p' || n, 'viewer', 'none fits'"
        " FROM generate_series(1, 101) AS n",
    )
    first = await shown(admin, "/people")
    assert ">p101<" in first
    assert ">p1<" not in first
    assert "102 accounts" in first
    (older,) = re.findall('href="([^"]+)" rel="next"', first)
    second = await shown(admin, older)
    assert ">p1<" in second
    assert ">admin<" in second


async def test_error_of_the_role_leads_to_it(engine: AsyncEngine) -> None:
    admin = await signed_in(engine, "admin")
    answer = await admin.post("/people/new", data={"name": "bob", "role": "root"})
    assert 'href="#role"' in answer.text
    assert 'id="role"' in answer.text


async def test_nobody_ends_the_session_of_somebody_else_by_its_number(engine: AsyncEngine) -> None:
    ann, bob = await signed_in(engine, "viewer", "ann"), await signed_in(engine, "admin", "bob")
    known = await value(
        engine,
        "SELECT encode(digest, 'hex') FROM session JOIN account ON id = account_id"
        " WHERE name = 'bob'",
    )
    assert (await ann.post("/account/sessions", data={"session": known})).status_code == 303
    assert (await bob.get("/")).status_code == 200
    assert (await ann.post("/account/sessions", data={"session": "no"})).status_code == 400


async def test_sign_out_everywhere_ends_every_session_this_one_too(engine: AsyncEngine) -> None:
    await add(engine)
    here, there = visitor(engine), visitor(engine)
    await sign_in(here)
    await sign_in(there)
    assert (await here.post("/account/sessions")).headers["location"] == "/login"
    for browser in (here, there):
        assert (await browser.get("/")).status_code == 303


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"present": "wrong"}, "present"),
        ({"password": "short", "again": "short"}, "password"),
        ({"again": "something else"}, "again"),
    ],
)
async def test_own_password_that_cannot_be_changed_says_why_beside_the_field(
    engine: AsyncEngine, form: dict[str, str], field: str
) -> None:
    await add(engine)
    browser = visitor(engine)
    await sign_in(browser)
    whole = {"present": PASSWORD, "password": "another long one", "again": "another long one"}
    answer = await browser.post("/account/password", data=whole | form)
    assert answer.status_code == 400
    assert f'id="{field}-error"' in answer.text
    assert "another long one" not in answer.text
    assert PASSWORD not in answer.text


async def test_own_password_is_changed_and_other_sessions_end(engine: AsyncEngine) -> None:
    await add(engine)
    here, there = visitor(engine), visitor(engine)
    await sign_in(here)
    await sign_in(there)
    form = {"present": PASSWORD, "password": "another long one", "again": "another long one"}
    assert (await here.post("/account/password", data=form)).status_code == 303
    assert (await here.get("/")).status_code == 200
    assert (await there.get("/")).status_code == 303
    assert (await sign_in(there)).status_code == 400
    assert (await sign_in(there, password="another long one")).status_code == 303  # noqa: S106  # of a test


async def test_present_password_cannot_be_guessed_in_a_session_that_was_left(
    engine: AsyncEngine,
) -> None:
    await add(engine)
    browser = visitor(engine)
    await sign_in(browser)
    form = {"present": "wrong", "password": "another long one", "again": "another long one"}
    answers = [await browser.post("/account/password", data=form) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [400] * 5 + [429]
    assert answers[-1].headers["retry-after"] == "1"
    assert "Too many wrong passwords" in answers[-1].text


async def test_admin_makes_an_account_that_can_sign_in(engine: AsyncEngine) -> None:
    admin = await signed_in(engine, "admin")
    form = {"name": " Bob ", "role": "operator", "password": PASSWORD, "again": PASSWORD}
    answer = await admin.post("/people/new", data=form)
    assert answer.status_code == 303, said(answer.text)
    page = said(await shown(admin, answer.headers["location"]))
    assert "The account is added." in page
    assert "Role: Operator." in page
    assert "Has never signed in." in page
    assert (await sign_in(visitor(engine), "bob")).status_code == 303
    assert "Bob Operator" in said(await shown(admin, "/people"))


@pytest.mark.parametrize(
    ("form", "status", "field"),
    [
        ({"name": ""}, 400, "name"),
        ({"name": "Admin"}, 409, "name"),
        ({"name": "a\x1b[2Jb"}, 400, "name"),
        ({"name": "a\u202eb"}, 400, "name"),
        ({"role": "root"}, 400, "role"),
        ({"role": ""}, 400, "role"),
        ({"password": "short", "again": "short"}, 400, "password"),
        ({"password": "annabel lee 1", "again": "annabel lee 1"}, 400, "password"),
        ({"again": "something else"}, 400, "again"),
    ],
)
async def test_account_that_cannot_be_made_says_why_beside_the_field(
    engine: AsyncEngine, form: dict[str, str], status: int, field: str
) -> None:
    admin = await signed_in(engine, "admin")
    whole = {"name": "Annabel Lee 1", "role": "viewer", "password": PASSWORD, "again": PASSWORD}
    answer = await admin.post("/people/new", data=whole | form)
    assert answer.status_code == status
    assert f'id="{field}-error"' in answer.text
    assert PASSWORD not in answer.text


async def test_names_are_shown_as_they_are(engine: AsyncEngine) -> None:
    account_id = await add(engine, HOSTILE)
    admin = await signed_in(engine, "admin", "<b>admin</b>")
    for path in ("/people", f"/people/{account_id}"):
        page = await shown(admin, path)
        assert "<script>alert" not in page
        assert "<b>admin" not in page


async def test_admin_changes_what_others_may_do_at_once(engine: AsyncEngine) -> None:
    admin = await signed_in(engine, "admin")
    account_id = await add(engine)
    browser = visitor(engine)
    await sign_in(browser)
    path = f"/people/{account_id}"
    assert (await admin.post(f"{path}/role", data={"role": "operator"})).status_code == 303
    assert (await browser.get("/mailings/new")).status_code == 200
    assert (await admin.post(f"{path}/sign-out")).status_code == 303
    assert (await browser.get("/")).status_code == 303
    await sign_in(browser)
    assert (await admin.post(f"{path}/disable")).status_code == 303
    assert "disabled since" in await shown(admin, path)
    assert (await browser.get("/")).status_code == 303
    assert (await sign_in(browser)).status_code == 400
    assert (await admin.post(f"{path}/enable")).status_code == 303
    assert (await sign_in(browser)).status_code == 303
    form = {"password": "another long one", "again": "another long one"}
    assert (await admin.post(f"{path}/password", data=form)).status_code == 303
    assert (await browser.get("/")).status_code == 303
    assert (await sign_in(browser, password="another long one")).status_code == 303  # noqa: S106  # of a test


async def test_admin_cannot_shut_themselves_out_nor_go_round_the_present_password(
    engine: AsyncEngine,
) -> None:
    admin = await signed_in(engine, "admin")
    own = await value(engine, "SELECT id FROM account")
    page = await shown(admin, f"/people/{own}")
    assert "This is you." in page
    assert not re.search("/role|/disable|/password", page)
    form = {"password": PASSWORD, "again": PASSWORD, "role": "viewer"}
    for verb in ("role", "disable", "password"):
        answer = await admin.post(f"/people/{own}/{verb}", data=form)
        assert answer.status_code == 409
        assert "another admin" in answer.text


@pytest.mark.parametrize("verb", ["role", "password", "disable", "enable", "sign-out"])
async def test_account_that_is_not_there_is_not_found(engine: AsyncEngine, verb: str) -> None:
    admin = await signed_in(engine, "admin")
    form = {"role": "viewer", "password": PASSWORD, "again": PASSWORD}
    assert (await admin.post(f"/people/999/{verb}", data=form)).status_code == 404
