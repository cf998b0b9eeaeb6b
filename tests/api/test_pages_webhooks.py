"""Pages of webhooks: list, create, change, test, deliver again, new secret, delete."""

import re
from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook as Verifier
from tests.asgi_client import inside
from tests.factories import OPEN, execute, rows, value
from tests.webhook_receiver import add_webhook

from mailer.app import create_app
from mailer.webhook.addresses import AddressPolicy
from mailer.webhook.retry_policy import MAX_CONSECUTIVE_FAILURES

FORM = {
    "name": "Shop",
    "url": "https://shop.example/hook",
    "event-messages.finished": "on",
    "event-gateway.up": "on",
}
URL = "https://shop.example/hook?key=1"


async def resolve(host: str, _: int) -> list[str]:
    """Resolve the host names of these tests."""
    return ["10.0.0.1"] if host == "inside.example" else ["93.184.216.34"]


@pytest.fixture
async def site(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """The pages, in English."""
    app = create_app(engine, settings=OPEN, webhook_addresses=AddressPolicy(resolve=resolve))
    headers = {"Accept": "text/html", "Accept-Language": "en", "Origin": "http://mailer"}
    async with httpx.AsyncClient(
        transport=inside(app), base_url="http://mailer", headers=headers
    ) as client:
        yield client


async def stored(engine: AsyncEngine) -> list[dict[str, object]]:
    return [dict(row) for row in await rows(engine, "SELECT * FROM webhook ORDER BY id")]


def action_of(page: httpx.Response) -> str:
    """Return the URL to which the form of a page is sent."""
    found = re.search(r'<form method="post" action="(/webhooks[^"]*)" autocomplete', page.text)
    assert found, page.text
    return found[1].replace("&amp;", "&")


async def test_a_webhook_is_created_and_its_secret_is_shown_once(
    site: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    assert "There are no webhooks yet." in (await site.get("/webhooks")).text
    action = action_of(await site.get("/webhooks/new"))
    created = await site.post(action, data=FORM)
    assert created.status_code == 201
    assert created.headers["Cache-Control"] == "no-store"
    secret = re.search(r"whsec_[A-Za-z0-9+/=]+", created.text.replace("&#43;", "+"))
    assert secret
    Verifier(secret[0])
    [webhook] = await stored(engine)
    assert webhook["events"] == ["messages.finished", "gateway.up"]
    again = await site.post(action, data=FORM)
    location = f"/webhooks?created={webhook['id']}"
    assert (again.status_code, again.headers["Location"]) == (303, location)
    assert "its secret was shown then" in (await site.get(location)).text
    assert len(await stored(engine)) == 1
    for path in ("/webhooks", f"/webhooks/{webhook['id']}", f"/webhooks/{webhook['id']}/edit"):
        page = await site.get(path)
        assert page.status_code == 200
        assert "Shop" in page.text
        assert "whsec_" not in page.text


async def test_a_wrong_form_is_shown_again_with_its_errors(
    site: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    wrong = await site.post(
        "/webhooks/new", data={"name": " ", "url": "https://inside.example/", "event-x": "on"}
    )
    assert wrong.status_code == 400
    assert "must be 1 to 64 characters" in wrong.text
    assert "must be a list of known events" in wrong.text
    private = await site.post("/webhooks/new", data=FORM | {"url": "https://inside.example/"})
    assert "leads to an address that is not public" in private.text
    assert 'name="event-gateway.up" id="event-gateway.up" checked' in private.text
    assert await stored(engine) == []


async def test_a_webhook_is_changed(site: httpx.AsyncClient, engine: AsyncEngine) -> None:
    path = f"/webhooks/{await add_webhook(engine, URL)}"
    form = FORM | {"name": "Store", "event-gateway.up": ""}
    changed = await site.post(f"{path}/edit", data=form)
    assert (changed.status_code, changed.headers["Location"]) == (303, path)
    [webhook] = await stored(engine)
    assert (webhook["name"], webhook["events"]) == ("Store", ["messages.finished"])
    wrong = await site.post(f"{path}/edit", data=form | {"url": "http://shop.example/"})
    assert wrong.status_code == 400
    assert "must start with https://" in wrong.text


async def test_actions_ask_and_are_carried_out(
    site: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = f"/webhooks/{await add_webhook(engine, URL)}"
    assert (await site.post(f"{path}/test")).headers["Location"] == path
    page = await site.get(path)
    assert "A test event is on its way" in page.text
    assert "<code" in page.text
    await execute(
        engine,
        "UPDATE webhook_delivery SET status = 'failed', error = 'http_503', attempts = 10,"
        " response_status = 503",
    )
    assert "answered with 503" in (await site.get(path)).text
    for verb in ("disable", "delete", "rotate-secret", "redeliver"):
        question = await site.get(f"{path}/{verb}")
        assert question.status_code == 200
        assert f'action="{path}/{verb}"' in question.text
    await site.post(f"{path}/redeliver")
    assert await value(engine, "SELECT status FROM webhook_delivery") == "waiting"
    await execute(engine, "UPDATE webhook_delivery SET status = 'delivered'")
    delivery_id = await value(engine, "SELECT id FROM webhook_delivery")
    await site.post(f"{path}/deliveries/{delivery_id}/redeliver")
    assert await value(engine, "SELECT status FROM webhook_delivery") == "waiting"
    rotated = await site.post(f"{path}/rotate-secret")
    assert "whsec_" in rotated.text
    assert rotated.headers["Cache-Control"] == "no-store"
    assert "Old secret valid until" in (await site.get(path)).text
    await site.post(f"{path}/disable")
    assert "A user has disabled it." in (await site.get(path)).text
    await site.post(f"{path}/enable")
    deleted = await site.post(f"{path}/delete")
    assert deleted.headers["Location"] == "/webhooks"
    assert await stored(engine) == []
    assert (await site.get(path)).status_code == 404


async def test_the_page_says_why_a_webhook_is_disabled_and_what_it_missed(
    site: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = f"/webhooks/{await add_webhook(engine, URL)}"
    for reason, sentence in (
        ("gone", "The endpoint answered that it is gone (410)."),
        ("failing", "The endpoint failed for too long."),
    ):
        await execute(
            engine,
            f"""UPDATE webhook SET is_enabled = false, disabled_at = now(), dropped = 7,
                disabled_reason = '{reason}'""",  # noqa: S608  # a word of the test
        )
        page = await site.get(path)
        assert sentence in page.text
        assert "7 events were dropped" in page.text


async def test_the_page_says_when_a_failing_webhook_is_disabled(
    site: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    path = f"/webhooks/{await add_webhook(engine, URL)}"
    limit = f"after {MAX_CONSECUTIVE_FAILURES} failed attempts in a row in at least a day"
    assert limit not in (await site.get(path)).text
    await execute(engine, "UPDATE webhook SET failures = 7, failing_since = now()")
    page = await site.get(path)
    assert "7 failed attempts in a row since" in page.text
    assert limit in page.text


@pytest.mark.parametrize("path", ["/webhooks/9", "/webhooks/9/edit", "/webhooks/9/delete"])
async def test_an_unknown_webhook_is_not_found(site: httpx.AsyncClient, path: str) -> None:
    assert (await site.get(path)).status_code == 404


async def test_an_unknown_action_is_not_found(site: httpx.AsyncClient, engine: AsyncEngine) -> None:
    path = f"/webhooks/{await add_webhook(engine, URL)}"
    assert (await site.get(f"{path}/explode")).status_code == 404
    assert (await site.post(f"{path}/explode")).status_code == 404


async def test_hostile_values_are_shown_as_text(
    site: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    hostile = "<script>alert(1)</script>"
    form = FORM | {"name": hostile, "url": "https://shop.example/?a=%3Cscript%3E&b='"}
    created = await site.post("/webhooks/new", data=form)
    assert created.status_code == 201, created.text
    assert hostile not in created.text
    [webhook] = await stored(engine)
    for path in ("/webhooks", f"/webhooks/{webhook['id']}", f"/webhooks/{webhook['id']}/delete"):
        assert hostile not in (await site.get(path)).text
