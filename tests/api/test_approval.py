"""With MAILER_REQUIRE_APPROVAL, a large mailing is launched by another than its last author."""

import re
from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import create_browser, get_page, signed_in_browser
from tests.api.calls import DUE, NEW, create_mailing
from tests.api.forms import NEW_FORM, visible_text
from tests.factories import add_clients, do, start_and_enqueue

from mailer.access import keys
from mailer.access.model import COMMAND_LINE
from mailer.mailing.errors import ApprovalRequiredError
from mailer.settings import Settings

APPROVAL = Settings(require_approval=True, confirm_above=2)
DRAFT = NEW | {"draft": True}
REFUSAL = (ApprovalRequiredError.__doc__ or "").splitlines()[0]


async def program(
    engine: AsyncEngine, name: str, settings: Settings = APPROVAL
) -> httpx.AsyncClient:
    """Return a client of the API with a key of its own."""
    new = keys.NewKey(name=name, scope="write")
    _, secret = await do(engine, lambda connection: keys.create(connection, new, COMMAND_LINE))
    client = create_browser(engine, settings)
    client.base_url = httpx.URL("http://mailer/api/v1")
    client.headers = httpx.Headers(
        {"Authorization": f"Bearer {secret}", "Accept": "application/json"}
    )
    return client


@pytest.fixture
async def author(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """The program that writes mailings for three clients, which is above the limit."""
    await add_clients(engine, 3)
    async with await program(engine, "author") as client:
        yield client


@pytest.fixture
async def approver(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """Another program."""
    async with await program(engine, "approver") as client:
        yield client


def is_refused(response: httpx.Response) -> bool:
    """Return whether a second user is required."""
    return response.status_code == 409 and response.json()["detail"] == REFUSAL


async def test_a_large_draft_is_launched_by_another_than_its_author(
    author: httpx.AsyncClient, approver: httpx.AsyncClient
) -> None:
    draft = await create_mailing(author, DRAFT)
    path = f"/mailings/{draft['id']}"
    assert is_refused(await author.post(f"{path}/launch"))
    assert (await author.get(path)).json()["status"] == "draft"
    assert (await approver.post(f"{path}/launch")).status_code == 200


async def test_who_changes_a_draft_becomes_its_author(
    author: httpx.AsyncClient, approver: httpx.AsyncClient
) -> None:
    draft = await create_mailing(author, DRAFT)
    path = f"/mailings/{draft['id']}"
    assert (await approver.patch(path, json={"text": "Other."})).status_code == 200
    assert is_refused(await approver.post(f"{path}/launch"))
    assert (await author.post(f"{path}/launch")).status_code == 200


async def test_who_changes_only_the_name_of_a_draft_does_not_become_its_author(
    author: httpx.AsyncClient, approver: httpx.AsyncClient
) -> None:
    draft = await create_mailing(author, DRAFT)
    path = f"/mailings/{draft['id']}"
    assert (await approver.patch(path, json={"name": "Spring"})).status_code == 200
    assert is_refused(await author.post(f"{path}/launch"))
    assert (await approver.post(f"{path}/launch")).status_code == 200


async def test_a_large_mailing_is_created_as_a_draft_only(author: httpx.AsyncClient) -> None:
    assert is_refused(await author.post("/mailings", json=NEW))
    assert (await author.get("/mailings")).json()["count"] == 0


async def test_a_small_mailing_needs_no_approval(author: httpx.AsyncClient) -> None:
    small = {"client_filter": "nobody"}
    assert (await author.post("/mailings", json=NEW | small)).status_code == 201
    draft = await create_mailing(author, DRAFT | small)
    assert (await author.post(f"/mailings/{draft['id']}/launch")).status_code == 200


@pytest.mark.parametrize("change", [{"text": "Other."}, {"client_filter": None}])
async def test_text_and_audience_of_a_launched_mailing_cannot_be_made_large_or_other(
    engine: AsyncEngine,
    author: httpx.AsyncClient,
    approver: httpx.AsyncClient,
    change: dict[str, object],
) -> None:
    client_filter = "nobody" if "client_filter" in change else None
    draft = await create_mailing(author, DUE | {"draft": True, "client_filter": client_filter})
    path = f"/mailings/{draft['id']}"
    assert (await approver.post(f"{path}/launch")).status_code == 200
    for _ in ("scheduled", "running"):
        assert is_refused(await approver.patch(path, json=change))
        end = {"datetime_end": "2040-01-03T09:00:00Z"}
        assert (await approver.patch(path, json=end)).status_code == 200
        if (await author.get(path)).json()["status"] == "scheduled":
            await start_and_enqueue(engine)


async def test_without_the_setting_an_author_launches_alone(engine: AsyncEngine) -> None:
    await add_clients(engine, 3)
    async with await program(engine, "alone", Settings(confirm_above=2)) as client:
        draft = await create_mailing(client, DRAFT)
        assert (await client.post(f"/mailings/{draft['id']}/launch")).status_code == 200
        assert (await client.post("/mailings", json=NEW)).status_code == 201


async def test_the_form_offers_to_save_a_draft_only_and_the_page_says_why_a_launch_is_refused(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 3)
    author = await signed_in_browser(engine, "operator", "olga", APPROVAL)
    preview = (await author.post("/mailings/preview", data=NEW_FORM)).text
    assert 'id="save-draft"' in preview
    assert 'id="save"' not in preview
    assert "So many clients need two users" in preview
    sent = await author.post("/mailings/new", data=NEW_FORM | {"then": "draft"})
    path = sent.headers["location"]
    question = await get_page(author, f"{path}/launch")
    [token] = re.findall('name="agreed" value="([^"]*)"', question)
    agreed = {"agreed": token, "typed": "3"}
    refused = await author.post(f"{path}/launch", data=agreed)
    assert refused.status_code == 409
    assert REFUSAL in visible_text(refused.text)
    other = await signed_in_browser(engine, "operator", "oleg", APPROVAL)
    assert (await other.post(f"{path}/launch", data=agreed)).status_code == 303


async def test_the_page_of_an_approved_mailing_tells_that_its_audience_has_changed(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 3)
    author = await signed_in_browser(engine, "operator", "olga", APPROVAL)
    sent = await author.post("/mailings/new", data=NEW_FORM | {"then": "draft"})
    path = sent.headers["location"]
    other = await signed_in_browser(engine, "operator", "oleg", APPROVAL)
    question = await get_page(other, f"{path}/launch")
    assert "also to those who are added before" in visible_text(question)
    [token] = re.findall('name="agreed" value="([^"]*)"', question)
    launched = await other.post(f"{path}/launch", data={"agreed": token, "typed": "3"})
    assert launched.status_code == 303
    note = "Clients who matched when it was scheduled"
    assert note not in await get_page(other, path)
    await add_clients(engine, 2, "903")
    page = visible_text(await get_page(other, path))
    assert f"{note}: 3. Clients who match now: 5." in page
