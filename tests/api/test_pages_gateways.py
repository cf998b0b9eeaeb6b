"""Pages of gateways, the notice about them on other pages, and the choice of one for a mailing."""

import html
import re
from collections.abc import AsyncIterator

import httpx
import pytest
from litestar import Litestar
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import (
    BROWSER,
    HOST_IN_COOKIES,
    SITE,
    get_page,
    post,
    signed_in_browser,
)
from tests.api.calls import DUE, NEW, create_mailing
from tests.asgi_client import inside
from tests.factories import (
    NOON,
    OPEN,
    UnusedGateway,
    add_due_messages,
    channel_of,
    do,
    execute,
    start_and_enqueue,
    value,
)
from tests.processes import Gateway, gateways

from mailer.access import audit_log
from mailer.app import create_app
from mailer.db.paging import Cursor
from mailer.gateway import routes
from mailer.gateway.channel import Channel, Channels
from mailer.gateway.opening import open_channels
from mailer.gateway.protocol import ReceiptUse, TemporaryFailure
from mailer.roles import Role
from mailer.settings import Settings
from mailer.web.cookie import SESSION_COOKIE

PHONE = "79161234567"
TEXT = "A secret text"


@pytest.fixture
async def main(engine: AsyncEngine) -> Channel:
    """A gateway that the newest configuration has, beside `spare`."""
    await do(engine, lambda db: routes.apply_routes(db, {"main": None, "spare": None}))
    return channel_of(UnusedGateway(), Settings(), name="main", price=2.5)


@pytest.fixture
def spare() -> Channel:
    """The gateway that is used when `main` is not."""
    return channel_of(UnusedGateway(), Settings(), name="spare", order=2)


@pytest.fixture
async def api(
    engine: AsyncEngine, main: Channel, spare: Channel
) -> AsyncIterator[httpx.AsyncClient]:
    """An application with the gateways `main` and `spare`."""
    app = create_app(engine, Channels([main, spare]), settings=OPEN)
    async with httpx.AsyncClient(transport=inside(app), base_url=f"{SITE}/api/v1") as client:
        yield client


@pytest.fixture
async def sandbox() -> AsyncIterator[Gateway]:
    async with gateways() as start:
        yield await start()


@pytest.fixture
async def api_with_sandbox(
    engine: AsyncEngine, sandbox: Gateway
) -> AsyncIterator[httpx.AsyncClient]:
    """An application whose gateway `default` is the sandbox."""
    transport = inside(app_of(engine, sandbox))
    async with httpx.AsyncClient(transport=transport, base_url=f"{SITE}/api/v1") as client:
        yield client


def app_of(engine: AsyncEngine, sandbox: Gateway) -> Litestar:
    """Return an application whose gateway `default` is the sandbox."""
    settings = Settings(auth="none", gateway_url=sandbox.url, gateway_token="secret")  # noqa: S106  # of a test
    channels = Channels(open_channels(settings, {}, Channels()))
    return create_app(engine, channels, settings=settings)


def fail(channel: Channel, reason: str = "no_credit") -> None:
    """Open the breaker of a gateway at noon."""
    generation = channel.breaker.acquire(0)
    assert generation is not None
    channel.breaker.record(generation, TemporaryFailure(reason, affects_all=True), 0, NOON)


def as_text(page: str) -> str:
    """Return a page without its elements, with every run of blanks as one space."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


# ---- the list and the page ------------------------------------------------------------------


async def test_the_list_shows_each_gateway_with_its_state(
    api: httpx.AsyncClient, main: Channel
) -> None:
    main.throughput.record(0.25)
    fail(main)
    page = await get_page(api, "/gateways")
    assert '<a href="/gateways" aria-current="page">Gateways</a>' in page
    rows = [as_text(row) for row in re.findall("<tr>.*?</tr>", page)]
    assert "main json Out breaker: open the account at the SMS provider has no credit" in rows[1]
    assert "200 a second 250 ms" in rows[1]
    assert "spare json In use" in rows[2]
    assert 'data-live="/live/gateways"' in page


async def test_the_list_without_gateways_says_so(application: httpx.AsyncClient) -> None:
    assert "No gateway is configured." in await get_page(application, "/gateways")


async def test_the_page_of_a_gateway_shows_its_configuration_and_what_it_did(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_due_messages(engine, 3)
    await execute(
        engine,
        """UPDATE message SET status = 'delivered', gateway = 'main', parts = 2,
            sent_at = now()""",
        """UPDATE message SET status = 'undelivered', reason = 'rejected_400', parts = NULL
            WHERE id = (SELECT min(id) FROM message)""",
    )
    page = as_text(await get_page(api, "/gateways/main"))
    assert "Gateway main Pause Release unknown In use Messages are sent through it." in page
    assert "Operator codes all Order 1 Weight none: as many messages as it can take" in page
    assert "accepted 2 100% delivered 2 undelivered 1" in page
    assert "parts 4 cost 10.00 the gateway rejected it with 400: 1" in page


async def test_a_gateway_without_a_weight_beside_one_with_a_weight_counts_as_1(
    engine: AsyncEngine,
) -> None:
    plain, heavy, spare = (
        channel_of(UnusedGateway(), Settings(), name=name, weight=weight, order=order)
        for name, weight, order in (("plain", None, 1), ("heavy", 3, 1), ("spare", None, 2))
    )
    app = create_app(engine, Channels([plain, heavy, spare]), settings=OPEN)
    async with httpx.AsyncClient(transport=inside(app), base_url=f"{SITE}/api/v1") as api:
        page = as_text(await get_page(api, "/gateways/plain"))
        assert "Weight none: counts as 1, because others of this order have a weight" in page
        assert "Weight 3 Sender" in as_text(await get_page(api, "/gateways/heavy"))
        page = as_text(await get_page(api, "/gateways/spare"))
        assert "Weight none: as many messages as it can take" in page


async def test_a_gateway_in_account_trouble_shows_what_to_do_and_can_be_tried(
    api: httpx.AsyncClient, main: Channel
) -> None:
    fail(main)
    page = await get_page(api, "/gateways/main")
    assert "the account at the SMS provider has no credit: top it up" in page
    assert '<input type="hidden" name="return_path" value="/gateways/main">' in page
    assert 'action="/gateway/try"' not in await get_page(api, "/gateways/main/pause")


@pytest.mark.parametrize("path", ["", "/pause", "/resume", "/release-unknown", "/nope"])
async def test_pages_of_an_unknown_gateway_are_404(api: httpx.AsyncClient, path: str) -> None:
    await get_page(api, f"/gateways/nope{path}", 404)
    await get_page(api, "/gateways/main/nope", 404)


async def test_the_page_of_a_gateway_says_whether_it_awaits_receipts(
    api: httpx.AsyncClient, main: Channel
) -> None:
    page = as_text(await get_page(api, "/gateways/main"))
    assert "Receipts none: a message is delivered when the gateway accepts it" in page
    main.receipts = ReceiptUse(is_awaited=True)
    page = as_text(await get_page(api, "/gateways/main"))
    assert "Receipts awaited: a message is delivered when its receipt says so" in page


# ---- deliveries -----------------------------------------------------------------------------


async def add_accepted(engine: AsyncEngine, status: str, count: int, ago: str = "0 hours") -> None:
    """Create messages to the operator code 916 that `main` has accepted."""
    mailing_id = await add_due_messages(engine, count)
    reason = "'not_delivered'" if status == "undelivered" else "NULL"
    await execute(
        engine,
        f"""UPDATE message SET status = '{status}', gateway = 'main', reason = {reason},
            sent_at = now() - interval '{ago}' WHERE mailing_id = {mailing_id}""",  # noqa: S608  # values of the test
    )


async def test_a_gateway_with_receipts_shows_its_delivery_by_operator_code(
    api: httpx.AsyncClient, engine: AsyncEngine, main: Channel
) -> None:
    await add_accepted(engine, "delivered", 3)
    await add_accepted(engine, "undelivered", 1)
    await add_accepted(engine, "sent", 2)
    await add_accepted(engine, "delivered", 4, ago="50 hours")
    assert "Delivery by operator code" not in await get_page(api, "/gateways/main")

    main.receipts = ReceiptUse(is_awaited=True)

    page = as_text(await get_page(api, "/gateways/main"))
    last_day, last_week = page.split("Accepted in the last 7 days")
    # rate, accepted, delivered, undelivered, awaiting, no receipt
    assert "All 75% 6 3 1 2 0 916 75% 6 3 1 2 0" in last_day
    assert "All 87.5% 10 7 1 2 0 916 87.5% 10 7 1 2 0" in last_week
    listed = as_text(await get_page(api, "/gateways"))
    assert "6 100% 3 75%" in listed
    assert "The percentage of accepted messages is the gateway's share" in listed
    assert "The percentage of delivered messages is of those" in listed


async def test_a_fall_of_the_delivery_rate_is_shown_on_the_gateway_the_list_and_the_overview(
    api: httpx.AsyncClient, engine: AsyncEngine, main: Channel
) -> None:
    main.receipts = ReceiptUse(is_awaited=True)
    await add_accepted(engine, "delivered", 188, ago="5 hours")
    await add_accepted(engine, "undelivered", 12, ago="5 hours")
    await add_accepted(engine, "delivered", 61)
    await add_accepted(engine, "undelivered", 38)
    paths = ("/gateways/main", "/gateways", "/")
    notice = "known were delivered; in the 24 hours before: 94%."
    assert [path for path in paths if notice in await get_page(api, path)] == []  # too few

    await add_accepted(engine, "undelivered", 1)

    notice = (
        "Only 61% of the messages accepted in the last hour whose delivery is known were delivered;"
        " in the 24 hours before: 94%."
    )
    assert [path for path in paths if notice not in await get_page(api, path)] == []
    assert 'class="card warning" id="gateway"' in await get_page(api, "/")


# ---- the notice on other pages --------------------------------------------------------------


async def test_every_page_names_the_gateways_that_are_not_used(
    api: httpx.AsyncClient, main: Channel, engine: AsyncEngine
) -> None:
    await add_due_messages(engine, 1)
    assert "Not used now" not in await get_page(api, "/clients")
    fail(main, "http_503")
    for path in ("/clients", "/mailings", "/mailings/1", "/audit"):
        page = as_text(await get_page(api, path))
        assert "Not used now: main (the gateway answered 503, since 15 Jan, 12:00 )" in page, path
    for path in ("/", "/system"):
        page = as_text(await get_page(api, path))
        assert "1 of 2 in use main : the gateway answered 503, since 15 Jan 2020, 12:00" in page
        assert "12:00 . The next message for it tests it." in page
        assert "Next attempt" not in page  # that time has passed, and no message came


async def test_the_overview_says_when_no_gateway_is_used(
    api: httpx.AsyncClient, main: Channel, spare: Channel
) -> None:
    assert "not accepting messages" not in await get_page(api, "/")
    fail(main)
    spare.pauses = {"spare": NOON}
    page = as_text(await get_page(api, "/"))
    assert "not accepting messages Running mailings wait; no messages are lost." in page
    assert "main : the account at the SMS provider has no credit" in page
    assert "spare : a user has paused the gateway, since 15 Jan 2020, 12:00" in page


# ---- pause, resume, release -----------------------------------------------------------------


async def test_a_pause_is_confirmed_with_its_effects(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    question = await get_page(api, "/gateways/main/pause")
    assert "Pause the gateway main?" in question
    assert "other gateways for the same operator codes: spare." in question
    response = await post(api, "/gateways/main/pause")
    assert (response.status_code, response.headers["location"]) == (303, "/gateways/main")
    page = await get_page(api, "/gateways/main")
    assert "a user has paused the gateway, since" in page
    assert "Resume" in page
    assert 'href="/gateways/main/pause"' not in page
    assert "No other gateway is in use" in await get_page(api, "/gateways/spare/pause")

    assert "Resume the gateway main?" in await get_page(api, "/gateways/main/resume")
    await post(api, "/gateways/main/resume")
    assert "Messages are sent through it." in await get_page(api, "/gateways/main")
    audit = as_text(await get_page(api, "/audit"))
    assert "Gateway resumed" in audit
    assert "Gateway paused" in audit
    assert await value(engine, "SELECT count(*) FROM audit") == 2


async def test_messages_that_wait_for_a_removed_gateway_are_named_and_released(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_due_messages(engine, 2)
    await execute(
        engine,
        "UPDATE message SET unknown_reason = 'timeout', route = find_route('{removed}')",
    )
    page = as_text(await get_page(api, "/gateways"))
    assert "Messages wait for the gateway removed, which is not configured any more" in page
    question = as_text(await get_page(api, "/gateways/removed/release-unknown"))
    assert "2 messages wait for this gateway alone." in question
    assert "clients may get them twice" in question
    response = await post(api, "/gateways/removed/release-unknown")
    assert (response.status_code, response.headers["location"]) == (303, "/gateways")
    assert "Messages wait for the gateway" not in await get_page(api, "/gateways")


@pytest.mark.parametrize("role", ["viewer", "operator"])
async def test_a_viewer_sees_gateways_and_only_writers_act(
    engine: AsyncEngine, main: Channel, role: Role
) -> None:
    signed_in = await signed_in_browser(engine, role)
    app = create_app(engine, Channels([main]), settings=Settings())
    async with httpx.AsyncClient(transport=inside(app), base_url=SITE, headers=BROWSER) as browser:
        secret = signed_in.cookies[SESSION_COOKIE]
        browser.cookies.set(SESSION_COOKIE, secret, domain=HOST_IN_COOKIES)
        page = (await browser.get("/gateways/main")).text
        may_act = role == "operator"
        for part in ("/gateways/main/pause", "/gateways/main/release-unknown", "/main/test?once="):
            assert (part in page) is may_act
        for path in ("pause", "test"):
            response = await browser.post(f"/gateways/main/{path}")
            assert (response.status_code == 403) is not may_act


# ---- a test message -------------------------------------------------------------------------


def find_test_url(page: str) -> str:
    """Return the URL to which the form of the test message is sent."""
    [url] = re.findall(r'action="(/gateways/default/test\?once=[0-9a-f]{32})"', page)
    return str(url)


async def test_a_test_message_is_sent_at_once_and_counted_nowhere(
    api_with_sandbox: httpx.AsyncClient, sandbox: Gateway, engine: AsyncEngine
) -> None:
    api = api_with_sandbox
    await api.post("/gateways/default/pause")
    url = find_test_url(await get_page(api, "/gateways/default"))
    form = {"phone": "+7 (916) 123-45-67", "text": TEXT}
    response = await api.post(f"{SITE}{url}", data=form, headers=BROWSER)
    assert response.status_code == 201
    assert "The gateway accepted the message." in response.text
    assert find_test_url(response.text) != url  # the next one is another message
    assert len(sandbox.received) == 1
    for table in ("message", "message_count_delta", "outcome_count"):
        assert await value(engine, f"SELECT count(*) FROM {table}") == 0  # noqa: S608  # a name


async def test_the_phone_and_the_text_of_a_test_message_are_recorded_nowhere(
    api_with_sandbox: httpx.AsyncClient, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    url = find_test_url(await get_page(api_with_sandbox, "/gateways/default"))
    await api_with_sandbox.post(
        f"{SITE}{url}", data={"phone": PHONE, "text": TEXT}, headers=BROWSER
    )
    async with engine.connect() as connection:
        [row] = (await audit_log.page(connection, Cursor(10))).rows
    assert (row.action, row.after) == ("gateway_tested", {"gateway": "default"})
    stored = str(await value(engine, "SELECT string_agg(t::text, '') FROM idempotency AS t"))
    for secret in (PHONE, TEXT):
        assert secret not in f"{row}{stored}{caplog.text}"
        assert secret.encode().hex() not in stored


async def test_a_form_sent_twice_sends_one_test_message(
    api_with_sandbox: httpx.AsyncClient, sandbox: Gateway
) -> None:
    url = find_test_url(await get_page(api_with_sandbox, "/gateways/default"))
    for status in (201, 303, 303):
        response = await api_with_sandbox.post(
            f"{SITE}{url}", data={"phone": PHONE, "text": TEXT}, headers=BROWSER
        )
        assert response.status_code == status
        assert response.headers["location"] == "/gateways/default"
    assert len(sandbox.received) == 1


async def test_the_page_of_a_result_leads_back_to_the_gateway_when_it_is_loaded_again(
    api: httpx.AsyncClient,
) -> None:
    response = await api.get(f"{SITE}/gateways/main/test?once={'a' * 32}", headers=BROWSER)
    assert (response.status_code, response.headers["location"]) == (303, "/gateways/main")


async def test_a_wrong_phone_is_an_error_beside_its_field_and_nothing_is_sent(
    api_with_sandbox: httpx.AsyncClient, sandbox: Gateway, engine: AsyncEngine
) -> None:
    url = find_test_url(await get_page(api_with_sandbox, "/gateways/default"))
    response = await api_with_sandbox.post(
        f"{SITE}{url}", data={"phone": "12", "text": ""}, headers=BROWSER
    )
    assert response.status_code == 400
    for field in ("phone", "text"):
        assert f'id="{field}-error"' in response.text
    assert find_test_url(response.text) == url
    assert sandbox.received == []
    assert await value(engine, "SELECT count(*) FROM audit") == 0


async def test_a_rejected_test_message_shows_the_reason(engine: AsyncEngine) -> None:
    async with gateways() as start:
        sandbox = await start(reject_rate=1.0)
        transport = inside(app_of(engine, sandbox))
        async with httpx.AsyncClient(transport=transport, base_url=SITE) as browser:
            response = await browser.post(
                "/gateways/default/test", data={"phone": PHONE, "text": TEXT}, headers=BROWSER
            )
    assert "The gateway rejected the message: the gateway rejected it with 400." in response.text


# ---- the choice of gateway and sender -------------------------------------------------------


async def test_the_form_offers_the_configured_gateways(api: httpx.AsyncClient) -> None:
    page = await get_page(api, "/mailings/new")
    for option in ('value="">By operator code', 'value="main">main', 'value="spare">spare'):
        assert f"<option {option}</option>" in page


async def test_gateway_and_sender_are_saved_shown_copied_and_changed(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    form = {
        "text": "Hello",
        "start": "2040-01-01T09:00",
        "end": "2040-01-02T09:00",
        "audience": "everybody",
        "on_unknown": "retry",
        "purpose": "marketing",
        "priority": "normal",
        "gateway": "spare",
        "sender": "Acme",
        "then": "draft",
    }
    created = await api.post(f"{SITE}/mailings/new", data=form, headers=BROWSER)
    assert created.status_code == 303, created.text
    path = created.headers["location"]
    page = as_text(await get_page(api, path))
    assert "Gateway spare Sender Acme" in page
    for form_path in (f"/mailings/new?from={path.rpartition('/')[2]}", f"{path}/edit"):
        form_page = await get_page(api, form_path)
        assert '<option value="spare" selected>spare</option>' in form_page
        assert 'value="Acme"' in form_page
    seen = re.findall('name="seen" value="([^"]+)"', await get_page(api, f"{path}/edit"))
    changed = form | {"gateway": "", "sender": "", "seen": seen[0], "zone": "UTC"}
    response = await api.post(f"{SITE}{path}/edit", data=changed, headers=BROWSER)
    assert response.status_code == 303, response.text
    page = as_text(await get_page(api, path))
    assert "Gateway By operator code Sender that of the gateway" in page
    query = "SELECT before FROM audit WHERE action = 'mailing_changed'"
    assert await value(engine, query) == {"gateway": "spare", "sender": "Acme"}
    audit = as_text(await get_page(api, "/audit"))
    assert "Gateway spare" in audit
    assert "Sender Acme" in audit


async def test_a_wrong_gateway_or_sender_is_an_error_beside_its_field(
    api: httpx.AsyncClient,
) -> None:
    form = {
        "text": "Hello",
        "start": "2040-01-01T09:00",
        "end": "2040-01-02T09:00",
        "audience": "everybody",
        "on_unknown": "retry",
        "purpose": "marketing",
        "priority": "normal",
    }
    for field, wrong in (("gateway", "nope"), ("gateway", "No!"), ("sender", "Привет")):
        response = await api.post(
            f"{SITE}/mailings/new", data=form | {field: wrong}, headers=BROWSER
        )
        assert response.status_code == 400
        assert f'id="{field}-error"' in response.text
    assert "must be up to 20 Latin letters, digits and signs" in response.text


async def test_a_mailing_of_a_removed_gateway_says_why_it_waits(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_due_messages(engine, 1)
    await execute(engine, "UPDATE mailing SET gateway = 'removed'")
    page = await get_page(api, "/mailings/1")
    assert "Its gateway removed is not configured, so nothing is sent." in as_text(page)
    assert "Gateway removed Sender" in as_text(page)
    assert 'href="/gateways/removed"' not in page
    assert 'action="/gateway/try"' not in page
    assert "Its gateway removed is not configured" in as_text(await get_page(api, "/"))
    assert '<option value="removed" selected>' in await get_page(api, "/mailings/1/edit")


async def test_a_mailing_of_a_paused_gateway_says_why_it_waits(
    api: httpx.AsyncClient, engine: AsyncEngine, main: Channel
) -> None:
    mailing_id = (await create_mailing(api, DUE | {"gateway": "main"}))["id"]
    await execute(engine, "INSERT INTO client (phone, operator_code) VALUES ('79160000001', '916')")
    await start_and_enqueue(engine)
    main.pauses = {"main": NOON}
    page = await get_page(api, f"/mailings/{mailing_id}")
    assert "A user has paused the gateway, so nothing is sent." in page


# ---- messages -------------------------------------------------------------------------------


async def test_a_message_shows_its_gateway_its_id_there_and_that_of_each_failed_attempt(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_due_messages(engine, 1)
    await execute(
        engine,
        """UPDATE message SET status = 'delivered', gateway = 'spare', parts = 3,
            gateway_message_id = '<b>SM1</b>', sent_at = now(), attempts = 2, failures =
            '[{"attempt": 1, "claimed_at": "2030-01-15T05:59:00Z", "gateway": "main",
            "ended_at": "2030-01-15T06:00:00Z", "reason": "http_500"}]'""",
    )
    message_id = await value(engine, "SELECT id FROM message")
    page = await get_page(api, f"/mailings/1/messages/{message_id}")
    assert "&lt;b&gt;SM1&lt;/b&gt;" in page
    text = as_text(page)
    assert "Gateway spare Id at the gateway <b>SM1</b> Parts 3" in text
    assert "Attempt 1 through main failed: the gateway answered 500." in text


async def test_the_list_of_messages_is_filtered_by_gateway(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_due_messages(engine, 3)
    first = await value(engine, "SELECT min(id) FROM message")
    await execute(
        engine,
        "UPDATE message SET status = 'delivered', gateway = 'spare', sent_at = now()",
        f"UPDATE message SET gateway = 'main' WHERE id = {first}",  # noqa: S608  # a number
    )
    page = await get_page(api, "/mailings/1/messages?gateway=main")
    assert '<option value="main" selected>main</option>' in page
    assert '<option value="spare">spare</option>' in page
    assert "1 message<" in page
    assert f"#{first}<" in page
    assert f"#{first + 1}<" not in page
    assert '<input type="hidden" name="gateway" value="main">' in page  # of the download
    await get_page(api, "/mailings/1/messages?gateway=%00", 400)
    assert (await create_mailing(api, NEW))["gateway"] is None
