"""The test of a mailing: its text to a few phones, outside the mailing and counted nowhere."""

import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, SITE, get_page, signed_in_browser
from tests.api.calls import NEW, create_mailing
from tests.api.forms import NEW_FORM, form_errors, form_values, get_html, post_form
from tests.asgi_client import inside
from tests.factories import NOON, OPEN, add_clients, do, execute, rows, value
from tests.fault_servers import http_response, respond_with, served
from tests.processes import Gateway, gateways

from mailer.access import audit_log
from mailer.app import create_app
from mailer.clock import elapsed
from mailer.db.paging import Cursor
from mailer.gateway import routes
from mailer.gateway.channel import Channels
from mailer.gateway.opening import open_channels
from mailer.gateway.router import GatewayTables
from mailer.gateway.sandbox import Faults, SandboxGateway, SandboxRequest
from mailer.gateway_control.testing_model import TEST_MARK
from mailer.settings import Settings

ANNA, BORIS, CLARA = "79161234567", "79031234568", "79991234569"
TEXT = "A secret text"
CALL = "/mailings/{}/test"
COUNTED_IN = ("message", "message_count_delta", "outcome_count", "delivery_count", "answer")


@pytest.fixture
async def sandbox() -> AsyncIterator[Gateway]:
    async with gateways() as start:
        yield await start()


@asynccontextmanager
async def api_of(engine: AsyncEngine, channels: Channels) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an application that sends through these channels."""
    transport = inside(create_app(engine, channels, settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url=f"{SITE}/api/v1") as client:
        yield client


def channels_of(sandbox: Gateway) -> Channels:
    """Return the channel of a sandbox, the only gateway, with the name `default`."""
    return Channels(open_channels(Settings(**sandbox.settings), {}, Channels()))  # type: ignore[arg-type]  # texts


@pytest.fixture
async def api(engine: AsyncEngine, sandbox: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """An application whose gateway `default` is the sandbox."""
    async with api_of(engine, channels_of(sandbox)) as client:
        yield client


@pytest.fixture
async def two_gateways(
    engine: AsyncEngine, sandbox: Gateway, tmp_path: Path
) -> AsyncIterator[tuple[Channels, list[SandboxRequest]]]:
    """The channels of two gateways, and the requests that `first` receives.

    `first` is for the operator code 916, for texts of one part, and has a sender; `spare` is for
    all codes.
    """
    received: list[SandboxRequest] = []
    first = SandboxGateway(Faults(), kind="exolve", token="secret", on_request=received.append)  # noqa: S106  # of a test
    async with first.run() as url:
        file = tmp_path / "gateways.toml"
        file.write_text(
            f"""{first.gateway_table("first", url)}
operator_codes = ["916"]
sender = "Own"
parts = 1

[[gateway]]
name = "spare"
kind = "json"
url = "{sandbox.url}"
token = "secret"
order = 2
"""
        )
        channels = Channels(open_channels(Settings(gateways=str(file)), {}, Channels()))
        codes = {each.name: each.config.operator_codes for each in channels}
        await do(engine, lambda connection: routes.apply_routes(connection, codes))
        yield channels, received


async def create(api: httpx.AsyncClient, **values: Any) -> int:
    """Create a mailing that starts later, and return its id."""
    return int((await create_mailing(api, NEW | {"text": TEXT} | values))["id"])


async def send(
    api: httpx.AsyncClient, mailing_id: int, *phones: str, status: int = 200, key: str | None = None
) -> Any:
    """Send a test to `phones`, perhaps with an Idempotency-Key; return the response."""
    headers = {} if key is None else {"Idempotency-Key": key}
    response = await api.post(
        CALL.format(mailing_id), json={"phones": list(phones)}, headers=headers
    )
    assert response.status_code == status, response.text
    return response.json()


async def test_a_test_reaches_each_phone_with_its_mark_and_the_sender_of_the_mailing(
    api: httpx.AsyncClient, sandbox: Gateway
) -> None:
    mailing_id = await create(api)

    answer = await send(api, mailing_id, BORIS, ANNA)

    assert [result["phone"] for result in answer["results"]] == ["***68", "***67"]
    for result in answer["results"]:
        assert result["outcome"] == "accepted"
        assert result["reason"] is None
        assert result["detail"] == "The gateway accepted the message."
        assert result["gateway"] == "default"
    messages = [record.message for record in sandbox.received]
    assert {str(message.phone) for message in messages if message} == {ANNA, BORIS}
    assert {message.text for message in messages if message} == {TEST_MARK + TEXT}
    assert len({record.id for record in sandbox.received}) == 2


async def test_a_test_is_counted_nowhere(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    mailing_id = await create(api)
    before = (await api.get(f"/mailings/{mailing_id}")).json()

    await send(api, mailing_id, ANNA)

    for table in COUNTED_IN:
        assert await value(engine, f"SELECT count(*) FROM {table}") == 0  # noqa: S608  # a name
    assert (await api.get(f"/mailings/{mailing_id}")).json() == before


async def test_the_audit_log_has_the_number_of_phones_and_nothing_stores_the_phones(
    api: httpx.AsyncClient, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    mailing_id = await create(api)

    await send(api, mailing_id, ANNA, BORIS, key="a")

    async with engine.connect() as connection:
        entry = audit_log.to_entry((await audit_log.page(connection, Cursor(1))).rows[0])
    assert (entry.action, entry.after) == ("mailing_tested", {"phones": 2})
    assert (entry.target.kind, entry.target.id) == ("mailing", mailing_id)
    stored = await rows(engine, "SELECT convert_from(body, 'utf8') AS body FROM idempotency")
    for phone in (ANNA, BORIS):
        assert phone not in f"{entry}{stored}{caplog.text}"


async def test_a_repeated_request_sends_nothing_again(
    api: httpx.AsyncClient, sandbox: Gateway
) -> None:
    mailing_id = await create(api)
    first = await send(api, mailing_id, ANNA, key="b")

    assert await send(api, mailing_id, ANNA, key="b") == first
    assert len(sandbox.received) == 1


async def test_a_request_whose_answer_was_lost_is_not_sent_again(
    api: httpx.AsyncClient, engine: AsyncEngine, sandbox: Gateway
) -> None:
    mailing_id = await create(api)
    await send(api, mailing_id, ANNA, key="c")
    await execute(
        engine,
        """UPDATE idempotency SET status = NULL, media_type = NULL, body = NULL,
            leased_until = now() - interval '1 minute'""",
    )

    answer = await send(api, mailing_id, ANNA, status=409, key="c")

    assert answer["detail"].startswith("An earlier attempt of this request may have sent")
    assert len(sandbox.received) == 1


async def test_a_phone_that_has_opted_out_gets_service_mailings_only(
    api: httpx.AsyncClient, sandbox: Gateway
) -> None:
    await api.post("/opt-outs", json={"phone": ANNA})
    marketing = await create(api)

    refused, accepted = (await send(api, marketing, ANNA, BORIS))["results"]

    assert (refused["outcome"], refused["reason"]) == ("not_sent", "opted_out")
    assert refused["detail"].endswith("the phone has opted out of marketing messages.")
    assert accepted["outcome"] == "accepted"
    assert [str(record.message.phone) for record in sandbox.received if record.message] == [BORIS]
    service = await create(api, purpose="service")
    [result] = (await send(api, service, ANNA))["results"]
    assert result["outcome"] == "accepted"


async def test_a_rejected_message_has_the_reason(engine: AsyncEngine) -> None:
    async with gateways() as start:
        sandbox = await start(reject_rate=1.0)
        async with api_of(engine, channels_of(sandbox)) as api:
            [result] = (await send(api, await create(api), ANNA))["results"]
    assert (result["outcome"], result["reason"]) == ("rejected", "rejected_400")
    assert result["detail"] == "The gateway rejected the message."


async def test_without_a_gateway_for_the_phone_nothing_is_sent(
    application: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    del engine  # requested to empty the database
    [result] = (await send(application, await create(application), ANNA))["results"]
    assert (result["outcome"], result["reason"]) == ("not_sent", "no_gateway")
    assert result["gateway"] is None


async def test_after_a_restore_no_test_is_sent_until_an_admin_allows_it(
    api: httpx.AsyncClient, sandbox: Gateway, engine: AsyncEngine
) -> None:
    mailing_id = await create(api)
    await execute(engine, "UPDATE origin SET held_since = now()")

    [result] = (await send(api, mailing_id, ANNA))["results"]

    assert (result["outcome"], result["reason"]) == ("not_sent", "restored")
    assert sandbox.received == []


@pytest.mark.parametrize(
    ("phones", "error"),
    [
        ([], "must be 1 to 5 phones, such as 79161234567"),
        ([f"7916123456{n}" for n in range(6)], "must be 1 to 5 phones, such as 79161234567"),
        (["+7 916 123-45-67"], "must be 1 to 5 phones, such as 79161234567"),
        ([ANNA, None], "must be 1 to 5 phones, such as 79161234567"),
        ([ANNA, BORIS, ANNA], "must not name a phone twice"),
    ],
)
async def test_wrong_phones_are_refused(
    api: httpx.AsyncClient, sandbox: Gateway, phones: list[Any], error: str
) -> None:
    mailing_id = await create(api)
    response = await api.post(CALL.format(mailing_id), json={"phones": phones})
    assert response.status_code == 400
    assert response.json()["errors"] == [{"field": "phones", "message": error}]
    assert sandbox.received == []


async def test_a_mailing_that_has_ended_or_does_not_exist_cannot_be_tested(
    api: httpx.AsyncClient, sandbox: Gateway
) -> None:
    mailing_id = await create(api)
    await api.post(f"/mailings/{mailing_id}/cancel")
    await send(api, mailing_id, ANNA, status=409)
    await send(api, mailing_id + 1, ANNA, status=404)
    assert sandbox.received == []


async def test_tests_are_limited(api: httpx.AsyncClient, sandbox: Gateway) -> None:
    mailing_id = await create(api)
    for _ in range(6):
        await send(api, mailing_id, ANNA)

    response = await api.post(CALL.format(mailing_id), json={"phones": [ANNA]})

    assert response.status_code == 429
    assert 0 < int(response.headers["Retry-After"]) <= 10
    assert len(sandbox.received) == 6
    url = find_test_url(await get_page(api, f"/mailings/{mailing_id}"))
    page = await api.post(f"{SITE}{url}", data={"phones": ANNA}, headers=BROWSER)
    assert page.status_code == 429


# ---- the gateway -----------------------------------------------------------------------------


async def test_the_gateway_is_that_of_the_operator_code_or_of_the_mailing(
    engine: AsyncEngine, two_gateways: tuple[Channels, list[SandboxRequest]]
) -> None:
    channels, received = two_gateways
    async with api_of(engine, channels) as api:
        # ported to another operator
        await api.post("/clients", json={"phone": CLARA, "operator_code": "916"})
        by_code = (await send(api, await create(api), ANNA, BORIS, CLARA))["results"]
        own = (await send(api, await create(api, gateway="spare"), ANNA))["results"]
    assert [result["gateway"] for result in by_code] == ["first", "spare", "first"]
    assert {result["outcome"] for result in [*by_code, *own]} == {"accepted"}
    assert [result["gateway"] for result in own] == ["spare"]
    assert len(received) == 2


async def test_the_sender_is_that_of_the_mailing_or_of_the_gateway(
    engine: AsyncEngine, two_gateways: tuple[Channels, list[SandboxRequest]]
) -> None:
    channels, received = two_gateways
    async with api_of(engine, channels) as api:
        await send(api, await create(api), ANNA)
        await send(api, await create(api, sender="Acme"), ANNA)
    assert [each.message.sender for each in received if each.message] == ["Own", "Acme"]


async def test_a_text_with_too_many_parts_for_the_gateway_is_not_sent(
    engine: AsyncEngine, two_gateways: tuple[Channels, list[SandboxRequest]]
) -> None:
    channels, received = two_gateways
    async with api_of(engine, channels) as api:
        [result] = (await send(api, await create(api, text="a" * 161), ANNA))["results"]
    assert (result["outcome"], result["reason"]) == ("not_sent", "too_many_parts")
    assert result["gateway"] == "first"
    assert received == []


async def test_a_paused_gateway_gets_no_test(
    engine: AsyncEngine, two_gateways: tuple[Channels, list[SandboxRequest]]
) -> None:
    channels, received = two_gateways
    async with api_of(engine, channels) as api:
        mailing_id = await create(api)
        channels.update(GatewayTables(routes={}, paused_at={"first": NOON}))
        [through_other] = (await send(api, mailing_id, ANNA))["results"]
        channels.update(GatewayTables(routes={}, paused_at={"first": NOON, "spare": NOON}))
        [not_sent] = (await send(api, mailing_id, ANNA))["results"]
    assert (through_other["outcome"], through_other["gateway"]) == ("accepted", "spare")
    assert (not_sent["outcome"], not_sent["reason"]) == ("not_sent", "gateway_paused")
    assert received == []


@asynccontextmanager
async def opting_out_gateway(folder: Path) -> AsyncIterator[Channels]:
    """Yield the channel of a gateway that answers that every phone has opted out."""
    answer = http_response(400, b'{"code": 21610}', "Content-Type: application/json")
    async with served(respond_with(answer)) as url:
        file = folder / "gateways.toml"
        file.write_text(
            f"""[[gateway]]
name = "main"
kind = "twilio"
url = "{url}"
account = "AC1"
token = "secret"
sender = "Own"
"""
        )
        yield Channels(open_channels(Settings(gateways=str(file)), {}, Channels()))


async def test_an_opt_out_that_the_gateway_answers_is_recorded(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    async with opting_out_gateway(tmp_path) as channels, api_of(engine, channels) as api:
        [result] = (await send(api, await create(api), ANNA))["results"]
        opt_outs = (await api.get("/opt-outs", params={"phone": ANNA})).json()["results"]
    assert (result["outcome"], result["reason"]) == ("rejected", "opted_out")
    assert [(each["source"], each["gateway"]) for each in opt_outs] == [("gateway", "main")]


async def test_results_are_shown_if_an_opt_out_cannot_be_recorded(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    async with opting_out_gateway(tmp_path) as channels, api_of(engine, channels) as api:
        mailing_id = await create(api)
        await execute(
            engine,
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'refused'; END $$",
            "CREATE TRIGGER refuse BEFORE INSERT ON opt_out EXECUTE FUNCTION refuse()",
        )
        try:
            results = (await send(api, mailing_id, ANNA, BORIS))["results"]
        finally:
            await execute(engine, "DROP FUNCTION refuse CASCADE")
    assert [(each["outcome"], each["reason"]) for each in results] == [
        ("rejected", "opted_out"),
        ("rejected", "opted_out"),
    ]
    assert await value(engine, "SELECT count(*) FROM opt_out") == 0


async def test_a_test_takes_slots_of_the_rate_of_its_gateway(
    engine: AsyncEngine, sandbox: Gateway
) -> None:
    settings = Settings(**sandbox.settings, gateway_rate=0.01)  # type: ignore[arg-type]  # texts
    channels = Channels(open_channels(settings, {}, Channels()))
    [channel] = channels
    async with api_of(engine, channels) as api:
        mailing_id = await create(api)
        first, second = (await send(api, mailing_id, ANNA, BORIS))["results"]
    assert (first["outcome"], second["outcome"]) == ("accepted", "not_sent")
    assert (second["reason"], second["gateway"]) == ("rate_limit", "default")
    assert channel.pacer is not None
    assert channel.pacer.reserve(elapsed()) > 100  # messages of mailings come after the test


# ---- the page --------------------------------------------------------------------------------


def find_test_url(page: str) -> str:
    """Return the URL to which the form of the test is sent."""
    [url] = re.findall(r'action="(/mailings/\d+/test\?once=[0-9a-f]{32})"', page)
    return str(url)


def as_text(page: str) -> str:
    """Return a page without its elements, with every run of blanks as one space."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


async def test_the_page_sends_to_phones_in_any_usual_form_and_shows_each_result(
    api: httpx.AsyncClient, sandbox: Gateway
) -> None:
    await api.post("/opt-outs", json={"phone": CLARA})
    mailing_id = await create(api)
    url = find_test_url(await get_page(api, f"/mailings/{mailing_id}"))

    response = await api.post(
        f"{SITE}{url}",
        data={"phones": "+7 (916) 123-45-67, 8 903 123 45 68\r\n\r\n9991234569;"},
        headers=BROWSER,
    )

    assert response.status_code == 201
    page = as_text(response.text)
    assert f"{ANNA}: The gateway accepted the message." in page
    assert f"{BORIS}: The gateway accepted the message." in page
    assert f"{CLARA}: Not sent: the client has opted out." in page
    assert len(sandbox.received) == 2
    assert find_test_url(response.text) != url  # the next one is another test


async def test_a_form_sent_twice_sends_one_test(api: httpx.AsyncClient, sandbox: Gateway) -> None:
    mailing_id = await create(api)
    url = find_test_url(await get_page(api, f"/mailings/{mailing_id}"))
    for status in (201, 303):
        response = await api.post(f"{SITE}{url}", data={"phones": ANNA}, headers=BROWSER)
        assert response.status_code == status
        assert response.headers["location"] == f"/mailings/{mailing_id}"
    response = await api.get(f"{SITE}{url}", headers=BROWSER)
    assert (response.status_code, response.headers["location"]) == (303, f"/mailings/{mailing_id}")
    assert len(sandbox.received) == 1


@pytest.mark.parametrize("phones", ["", "12", ",".join(f"7916123456{n}" for n in range(6))])
async def test_wrong_phones_are_an_error_beside_the_field(
    api: httpx.AsyncClient, sandbox: Gateway, phones: str
) -> None:
    mailing_id = await create(api)
    url = find_test_url(await get_page(api, f"/mailings/{mailing_id}"))
    response = await api.post(f"{SITE}{url}", data={"phones": phones}, headers=BROWSER)
    assert response.status_code == 400
    assert 'id="phones-error">must be 1 to 5 phones' in response.text
    assert find_test_url(response.text) == url
    assert sandbox.received == []


# ---- the form of a mailing -------------------------------------------------------------------


def find_form_test_url(page: str) -> str:
    """Return the URL to which the form of a mailing is sent for a test."""
    [url] = re.findall(r'formaction="([^"]*/test\?once=[0-9a-f]{32})"', page)
    return str(url)


async def test_the_form_of_a_new_mailing_saves_a_draft_and_sends_it_as_typed(
    api: httpx.AsyncClient, engine: AsyncEngine, sandbox: Gateway
) -> None:
    url = find_form_test_url(await get_html(api, "/mailings/new"))
    typed = NEW_FORM | {"text": TEXT, "sender": "Acme", "gateway": "default", "phones": ANNA}
    for status in (201, 303):  # sent twice
        response = await post_form(api, url, typed)
        assert response.status_code == status
        assert response.headers["location"] == "/mailings/1"
    [record] = sandbox.received
    assert record.message is not None
    assert (str(record.message.phone), record.message.text) == (ANNA, TEST_MARK + TEXT)
    [draft] = (await api.get("/mailings")).json()["results"]
    assert (draft["status"], draft["text"], draft["created_messages"]) == ("draft", TEXT, 0)
    assert (draft["sender"], draft["gateway"]) == ("Acme", "default")
    for table in COUNTED_IN:
        assert await value(engine, f"SELECT count(*) FROM {table}") == 0  # noqa: S608  # a name
    audit = "SELECT string_agg(action, ' ' ORDER BY id) FROM audit"
    assert await value(engine, audit) == "mailing_created mailing_tested"


async def test_after_a_test_the_page_of_the_draft_shows_the_results(
    api: httpx.AsyncClient, sandbox: Gateway
) -> None:
    url = find_form_test_url(await get_html(api, "/mailings/new"))
    page = (await post_form(api, url, NEW_FORM | {"phones": f"{ANNA}, {BORIS}"})).text
    assert f"{BORIS}: The gateway accepted the message." in as_text(page)
    assert find_test_url(page).startswith("/mailings/1/test?")
    assert len(sandbox.received) == 2
    again = await api.get(f"{SITE}{url}", headers=BROWSER)
    assert (again.status_code, again.headers["location"]) == (303, "/mailings/new")


async def test_the_form_of_a_draft_saves_the_changes_and_sends_them_once(
    api: httpx.AsyncClient, sandbox: Gateway
) -> None:
    draft = await create_mailing(api, NEW | {"draft": True})
    page = await get_html(api, f"/mailings/{draft['id']}/edit")
    form = form_values(page) | {"text": TEXT, "phones": ANNA}
    for status in (201, 303):
        assert (await post_form(api, find_form_test_url(page), form)).status_code == status
    assert [each.message.text for each in sandbox.received if each.message] == [TEST_MARK + TEXT]
    changed = (await api.get(f"/mailings/{draft['id']}")).json()
    assert (changed["status"], changed["text"]) == ("draft", TEXT)
    page = await get_html(api, f"/mailings/{draft['id']}/edit")
    outdated = form_values(page) | {"seen": "1", "phones": ANNA}
    response = await post_form(api, find_form_test_url(page), outdated)
    assert response.status_code == 409
    assert "Another user changed this mailing in the meantime." in response.text
    again = await api.get(f"{SITE}{find_form_test_url(page)}", headers=BROWSER)
    assert again.headers["location"] == f"/mailings/{draft['id']}/edit"
    assert len(sandbox.received) == 1


async def test_the_form_shows_wrong_phones_and_other_errors_at_once_and_saves_nothing(
    api: httpx.AsyncClient, sandbox: Gateway
) -> None:
    url = find_form_test_url(await get_html(api, "/mailings/new"))
    response = await post_form(api, url, NEW_FORM | {"text": "Dear {{ name", "phones": "12"})
    assert response.status_code == 400
    errors = form_errors(response.text)
    assert errors["phones"].startswith("must be 1 to 5 phones")
    assert "opening braces" in errors["text"]
    assert re.search(r' action="/mailings/new\?once=', response.text)  # of the other buttons
    response = await post_form(api, url, NEW_FORM)
    assert form_errors(response.text).keys() == {"phones"}
    assert (await api.get("/mailings")).json()["count"] == 0
    assert not sandbox.received


async def test_tests_from_the_form_are_limited_and_only_drafts_have_them(
    api: httpx.AsyncClient, sandbox: Gateway
) -> None:
    typed = NEW_FORM | {"phones": ANNA}
    statuses = [(await post_form(api, "/mailings/new/test", typed)).status_code for _ in range(7)]
    assert statuses == [201] * 6 + [429]
    assert (await api.get("/mailings")).json()["count"] == len(sandbox.received) == 6
    scheduled = await create_mailing(api, NEW)
    page = await get_html(api, f"/mailings/{scheduled['id']}/edit")
    assert "formaction" not in page
    form = form_values(page) | {"phones": ANNA}
    response = await post_form(api, f"/mailings/{scheduled['id']}/edit/test", form)
    assert response.status_code == 409
    assert "another user has launched it" in response.text


async def test_only_writers_see_the_form_and_only_before_the_end(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1)
    mailing_id = await create(api)
    viewer = await signed_in_browser(engine, "viewer")
    assert "/test?once=" not in (await viewer.get(f"/mailings/{mailing_id}")).text
    assert (await viewer.post(f"/mailings/{mailing_id}/test")).status_code == 403
    await api.post(f"/mailings/{mailing_id}/cancel")
    assert "/test?once=" not in await get_page(api, f"/mailings/{mailing_id}")


async def test_a_test_has_the_fields_of_the_client_with_the_phone_or_the_defaults(
    api: httpx.AsyncClient, sandbox: Gateway
) -> None:
    await api.post("/clients", json={"phone": ANNA, "fields": {"name": "Anna"}})
    mailing_id = await create(api, text="Dear {{ name | friend }}")

    await send(api, mailing_id, ANNA, BORIS)

    sent = {str(each.message.phone): each.message.text for each in sandbox.received if each.message}
    assert sent == {ANNA: f"{TEST_MARK}Dear Anna", BORIS: f"{TEST_MARK}Dear friend"}


async def test_a_phone_without_a_field_of_the_text_gets_nothing(
    api: httpx.AsyncClient, sandbox: Gateway
) -> None:
    await api.post("/clients", json={"phone": ANNA, "fields": {"name": "a" * 200}})
    results = (await send(api, await create(api, text="{{ name }}"), BORIS))["results"]
    assert [(each["outcome"], each["reason"]) for each in results] == [
        ("not_sent", "missing_field")
    ]
    assert "no client with this phone has the fields of the text" in results[0]["detail"]
    results = (await send(api, await create(api, text="{{ name }}" * 9), ANNA))["results"]
    assert [(each["outcome"], each["reason"]) for each in results] == [
        ("not_sent", "text_too_long")
    ]
    assert not sandbox.received
