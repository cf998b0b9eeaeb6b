"""Every route and method admits exactly the credentials that `docs/security.md` lists.

`tests.security_table` explains rules, credentials and their expected outcomes.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import pytest
from litestar import Litestar
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.security_table import (
    CREDENTIALS,
    DOCUMENT,
    REASONS,
    ROLES,
    Credential,
    Rule,
    expected,
    rules,
    updated_document,
    weakly_authorized,
)

from mailer.access import commands, sessions
from mailer.access.middleware import MONITORING, NOTHING
from mailer.app import create_app
from mailer.roles import SCOPES
from mailer.settings import Settings
from mailer.validation import MAX_ID
from mailer.web.cookie import SESSION_COOKIE
from mailer.web.origin import SAFE_METHODS

RULES = rules()
UNSAFE = [rule for rule in RULES if rule.method not in SAFE_METHODS]
PATH_PARAMETERS = {"verb": "pause", "file_path": "pages.css"}
"""Values for parameters in paths; all others are ids, and get the id of no object."""
ENDS_SESSIONS = {"/logout", "/profile/sessions"}
"""Paths that redirect to the sign-in form also after success."""
BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
INSERT_USER = text("""
    INSERT INTO app_user (name, role, password_hash) VALUES (:role, :role, 'none fits')
    RETURNING id""")


class ResponseStart:
    """Status and headers of a response."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        self.status: int = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}

    @property
    def redirects_to_sign_in(self) -> bool:
        return self.status == 303 and self.headers["location"].startswith("/login")


async def send_request(
    app: Litestar, method: str, path: str, headers: Mapping[str, str]
) -> ResponseStart:
    """Send a request without a body to an ASGI application; return when the response starts.

    Some responses never end.
    """
    starts: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        """Return the request without a body; then wait, since the sender stays connected."""
        return next(messages, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            starts.put_nowait(message)

    raw_headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope: Any = {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"mailer"), *raw_headers],
        "client": ("127.0.0.1", 1),
    }
    request = asyncio.create_task(app(scope, receive, send))
    try:
        async with asyncio.timeout(EVENT_TIMEOUT):
            return ResponseStart(await starts.get())
    finally:
        request.cancel()
        await asyncio.wait([request])


def path_of(rule: Rule) -> str:
    """Return a path of the rule's route, with values for the parameters."""

    def parameter_value(found: re.Match[str]) -> str:
        return PATH_PARAMETERS.get(found[1], str(MAX_ID))

    return re.sub(r"\{(\w+)\}", parameter_value, rule.path)


@pytest.fixture(scope="module")
async def app(shared_engine: AsyncEngine) -> Litestar:
    """The application; a key may send any number of requests."""
    return create_app(shared_engine, settings=Settings(key_rate=0))


@pytest.fixture(scope="module")
async def keys(shared_engine: AsyncEngine) -> dict[str, str]:
    """A key for each scope: its secret."""
    return {scope: await commands.create_key(shared_engine, scope, scope, None) for scope in SCOPES}


@pytest.fixture(scope="module")
async def user_ids(shared_engine: AsyncEngine) -> dict[str, int]:
    """A user for each role: the id, by credential in the table."""
    async with shared_engine.begin() as connection:
        rows = {
            credential: await connection.execute(INSERT_USER, {"role": credential.split()[-1]})
            for credential in ROLES
        }
    return {credential: row.scalar_one() for credential, row in rows.items()}


class Credentials:
    """Request headers for every credential of the table.

    A session is created for each request, since some requests end sessions.
    """

    def __init__(
        self, engine: AsyncEngine, keys: Mapping[str, str], user_ids: Mapping[str, int]
    ) -> None:
        self._engine = engine
        self._keys = keys
        self._user_ids = user_ids

    async def headers(self, credential: Credential) -> dict[str, str]:
        if credential in self._keys:
            return {"Authorization": f"Bearer {self._keys[credential]}"}
        if credential in self._user_ids:
            async with self._engine.begin() as connection:
                secret = await sessions.create(connection, self._user_ids[credential], None, "")
            return {"Cookie": f"{SESSION_COOKIE}={secret}"}
        return {}


@pytest.fixture(scope="module")
def credentials(
    shared_engine: AsyncEngine, keys: dict[str, str], user_ids: dict[str, int]
) -> Credentials:
    return Credentials(shared_engine, keys, user_ids)


def label(parameter: object) -> str:
    """Return how pytest names a test with this parameter."""
    return (
        f"{parameter.method} {parameter.path}"
        if isinstance(parameter, Rule)
        else str(parameter) or "none"
    )


@pytest.mark.parametrize("credential", CREDENTIALS, ids=label)
@pytest.mark.parametrize("rule", RULES, ids=label)
async def test_a_route_admits_the_credentials_in_the_table(
    app: Litestar, credentials: Credentials, rule: Rule, credential: Credential
) -> None:
    headers = await credentials.headers(credential)
    answer = await send_request(app, rule.method, path_of(rule), BROWSER | headers)
    match expected(rule, credential):
        case "in":
            assert answer.status not in {401, 403}
            assert answer.status < 500
            assert rule.path in ENDS_SESSIONS or not answer.redirects_to_sign_in
        case "sign in":
            assert answer.redirects_to_sign_in
        case refused:
            assert str(answer.status) == refused


def test_the_document_matches_the_routes() -> None:
    document = DOCUMENT.read_text()
    assert document == updated_document(document), "run make security"


def test_every_route_declares_its_authorization() -> None:
    allowed = {*SCOPES, NOTHING, MONITORING}
    assert [rule for rule in RULES if rule.requires not in allowed] == []
    assert [rule for rule in RULES if rule.requires in SCOPES and rule.auth_method is None] == []
    assert len(RULES) > 50


def test_unsafe_routes_with_weak_authorization_are_listed_with_reasons() -> None:
    routes = {(rule.method, rule.path) for rule in weakly_authorized(RULES)}
    assert routes == REASONS.keys()


def test_a_route_without_a_rule_is_closed_and_detected() -> None:
    forgotten = Rule("POST", "/forgotten", requires=None, auth_method="session")
    assert {expected(forgotten, each) for each in CREDENTIALS} == {"403", "sign in"}
    assert weakly_authorized([forgotten]) == [forgotten]


@pytest.mark.parametrize("rule", UNSAFE, ids=label)
@pytest.mark.parametrize("site", ["cross-site", "same-site", None])
async def test_cross_site_requests_are_refused(
    app: Litestar, credentials: Credentials, rule: Rule, site: str | None
) -> None:
    headers = await credentials.headers("an admin" if rule.auth_method == "session" else "admin")
    if site:
        headers |= {"Sec-Fetch-Site": site}
    answer = await send_request(app, rule.method, path_of(rule), headers)
    # browsers send the header; without it, the request for the API comes from a program
    is_of_program = site is None and rule.auth_method == "key"
    assert (answer.status == 403) is not is_of_program


@pytest.mark.parametrize("path", sorted({path_of(rule) for rule in RULES}))
async def test_other_methods_are_405(app: Litestar, path: str) -> None:
    methods = {rule.method for rule in RULES if path_of(rule) == path}
    for method in {"HEAD", "PUT", "DELETE", "PATCH", "TRACE", "QUERY"} - methods:
        assert (await send_request(app, method, path, BROWSER)).status == 405
    options = await send_request(app, "OPTIONS", path, {})
    assert options.status == 204
    assert {"OPTIONS"} < set(options.headers["allow"].split(", ")) <= methods | {"OPTIONS"}


@pytest.mark.parametrize("credential", CREDENTIALS, ids=label)
@pytest.mark.parametrize("path", ["/nothing", "/api/v1/nothing", "/api/v2/clients", "/keys/x"])
async def test_unknown_paths_are_404_for_every_credential(
    app: Litestar, credentials: Credentials, path: str, credential: Credential
) -> None:
    headers = await credentials.headers(credential)
    assert (await send_request(app, "GET", path, BROWSER | headers)).status == 404


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.requires == MONITORING], ids=label)
async def test_monitoring_needs_its_token_if_one_is_configured(
    shared_engine: AsyncEngine, credentials: Credentials, rule: Rule
) -> None:
    app = create_app(shared_engine, settings=Settings(monitoring_token="let me look"))  # noqa: S106  # used in tests alone
    no_token: dict[str, str] = {}
    other_token = {"Authorization": "Bearer else"}
    admin_key = await credentials.headers("admin")
    for headers in (no_token, other_token, admin_key):
        assert (await send_request(app, rule.method, rule.path, headers)).status == 401
    right_token = {"Authorization": "Bearer let me look"}
    assert (await send_request(app, rule.method, rule.path, right_token)).status == 200
