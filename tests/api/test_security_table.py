"""Every route and method lets in whom `docs/security.md` says, and nobody else."""

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import pytest
from litestar import Litestar
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.patience import PATIENCE
from tests.security_table import (
    CREDENTIALS,
    DOCUMENT,
    REASONS,
    ROLES,
    Credential,
    Rule,
    brought_up_to_date,
    expected,
    rules,
    slight,
)

from mailer.access import commands, sessions
from mailer.access.cookie import COOKIE
from mailer.access.gate import MONITORING, NOTHING
from mailer.app import create_app
from mailer.settings import SCOPES, Settings
from mailer.validation import MAX_ID
from mailer.web.origin import SAFE

RULES = rules()
UNSAFE = [rule for rule in RULES if rule.method not in SAFE]
VALUES = {"verb": "pause", "file_path": "pages.css"}
"""What stands in paths; a number is that of nothing there is."""
ENDS_SESSIONS = {"/logout", "/account/sessions"}
"""What is done there leads to where one signs in, too."""
BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
ADD_ACCOUNT = text("""
    INSERT INTO account (name, role, password) VALUES (:role, :role, 'none fits') RETURNING id""")


class Answer:
    """How an application begins to answer."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        self.status: int = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}

    @property
    def leads_to_sign_in(self) -> bool:
        return self.status == 303 and self.headers["location"].startswith("/login")


async def ask(app: Litestar, method: str, path: str, headers: Mapping[str, str]) -> Answer:
    """Send a request without a body, and leave when its answer begins: some have no end."""
    starts: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
    parts = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        return next(parts, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            starts.put_nowait(message)

    given = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope: Any = {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"mailer"), *given],
        "client": ("127.0.0.1", 1),
    }
    asked = asyncio.create_task(app(scope, receive, send))
    try:
        async with asyncio.timeout(PATIENCE):
            return Answer(await starts.get())
    finally:
        asked.cancel()
        await asyncio.wait([asked])


def path_of(rule: Rule) -> str:
    return re.sub(r"\{(\w+)\}", lambda m: VALUES.get(m[1], str(MAX_ID)), rule.path)


@pytest.fixture(scope="module")
async def app(shared_engine: AsyncEngine) -> Litestar:
    return create_app(shared_engine, settings=Settings(key_rate=0))


@pytest.fixture(scope="module")
async def keys(shared_engine: AsyncEngine) -> dict[str, str]:
    return {scope: await commands.make_key(shared_engine, scope, scope, None) for scope in SCOPES}


@pytest.fixture(scope="module")
async def accounts(shared_engine: AsyncEngine) -> dict[str, int]:
    async with shared_engine.begin() as connection:
        made = {
            credential: await connection.execute(ADD_ACCOUNT, {"role": credential.split()[-1]})
            for credential in ROLES
        }
    return {credential: row.scalar_one() for credential, row in made.items()}


class Visitors:
    """Requests that show one credential or another; a session is begun for each."""

    def __init__(
        self, engine: AsyncEngine, keys: Mapping[str, str], accounts: Mapping[str, int]
    ) -> None:
        self._engine, self._keys, self._accounts = engine, keys, accounts

    async def headers(self, credential: Credential) -> dict[str, str]:
        if credential in self._keys:
            return {"Authorization": f"Bearer {self._keys[credential]}"}
        if credential in self._accounts:
            async with self._engine.begin() as connection:
                secret = await sessions.begin(connection, self._accounts[credential], None, "")
            return {"Cookie": f"{COOKIE}={secret}"}
        return {}


@pytest.fixture(scope="module")
def visitors(
    shared_engine: AsyncEngine, keys: dict[str, str], accounts: dict[str, int]
) -> Visitors:
    return Visitors(shared_engine, keys, accounts)


def told(each: object) -> str:
    return f"{each.method} {each.path}" if isinstance(each, Rule) else str(each) or "none"


@pytest.mark.parametrize("credential", CREDENTIALS, ids=told)
@pytest.mark.parametrize("rule", RULES, ids=told)
async def test_a_route_lets_in_whom_the_table_says(
    app: Litestar, visitors: Visitors, rule: Rule, credential: Credential
) -> None:
    shown = await visitors.headers(credential)
    answer = await ask(app, rule.method, path_of(rule), BROWSER | shown)
    match expected(rule, credential):
        case "in":
            assert answer.status not in {401, 403}
            assert answer.status < 500
            assert rule.path in ENDS_SESSIONS or not answer.leads_to_sign_in
        case "sign in":
            assert answer.leads_to_sign_in
        case refused:
            assert str(answer.status) == refused


def test_the_document_is_what_the_router_says() -> None:
    document = DOCUMENT.read_text()
    assert document == brought_up_to_date(document), "run make security"


def test_every_route_says_what_it_needs() -> None:
    known = {*SCOPES, NOTHING, MONITORING}
    assert [rule for rule in RULES if rule.needs not in known] == []
    assert [rule for rule in RULES if rule.needs in SCOPES and rule.door is None] == []
    assert len(RULES) > 50


def test_what_changes_something_and_needs_little_is_known_by_name() -> None:
    found = {(rule.method, rule.path) for rule in slight(RULES)}
    assert found == REASONS.keys()


def test_a_route_without_a_rule_is_shut_and_would_be_seen() -> None:
    forgotten = Rule("POST", "/forgotten", None, "session")
    assert {expected(forgotten, each) for each in CREDENTIALS} == {"403", "sign in"}
    assert slight([forgotten]) == [forgotten]


@pytest.mark.parametrize("rule", UNSAFE, ids=told)
@pytest.mark.parametrize("site", ["cross-site", "same-site", None])
async def test_what_another_site_sends_changes_nothing(
    app: Litestar, visitors: Visitors, rule: Rule, site: str | None
) -> None:
    shown = await visitors.headers("an admin" if rule.door == "session" else "admin")
    if site:
        shown |= {"Sec-Fetch-Site": site}
    answer = await ask(app, rule.method, path_of(rule), shown)
    is_a_program = site is None and rule.door == "key"
    assert (answer.status == 403) is not is_a_program


@pytest.mark.parametrize("path", sorted({path_of(rule) for rule in RULES}))
async def test_other_methods_tell_nothing_and_do_nothing(app: Litestar, path: str) -> None:
    known = {rule.method for rule in RULES if path_of(rule) == path}
    for method in {"HEAD", "PUT", "DELETE", "PATCH", "TRACE", "QUERY"} - known:
        assert (await ask(app, method, path, BROWSER)).status == 405
    options = await ask(app, "OPTIONS", path, {})
    assert options.status == 204
    assert {"OPTIONS"} < set(options.headers["allow"].split(", ")) <= known | {"OPTIONS"}


@pytest.mark.parametrize("credential", CREDENTIALS, ids=told)
@pytest.mark.parametrize("path", ["/nothing", "/api/v1/nothing", "/api/v2/clients", "/keys/x"])
async def test_what_is_not_there_is_not_there_for_anybody(
    app: Litestar, visitors: Visitors, path: str, credential: Credential
) -> None:
    shown = await visitors.headers(credential)
    assert (await ask(app, "GET", path, BROWSER | shown)).status == 404


@pytest.mark.parametrize("rule", [r for r in RULES if r.needs == MONITORING], ids=told)
async def test_monitoring_asks_for_its_token_once_it_is_set(
    shared_engine: AsyncEngine, visitors: Visitors, rule: Rule
) -> None:
    app = create_app(shared_engine, settings=Settings(monitoring_token="let me look"))  # noqa: S106  # of a test
    right = {"Authorization": "Bearer let me look"}
    wrong: tuple[dict[str, str], ...] = (
        {},
        {"Authorization": "Bearer else"},
        await visitors.headers("admin"),
    )
    for shown in wrong:
        assert (await ask(app, rule.method, rule.path, shown)).status == 401
    assert (await ask(app, rule.method, rule.path, right)).status == 200
