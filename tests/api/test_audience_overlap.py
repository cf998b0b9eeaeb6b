"""The overlap of a mailing with others: in the API, beside the form, and in the question."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import NEW, create_mailing
from tests.api.forms import NEW_FORM, SITE, get_html, post_form, preview_form, visible_text
from tests.asgi_client import inside
from tests.factories import OPEN, add_clients, add_mailing, add_messages, execute

from mailer.app import create_app

LATER = NEW | {"datetime_start": "2040-01-01T12:00:00Z", "text": "Winter sale"}


@pytest.fixture
async def capped(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the API with a contact cap of one message in two days."""
    app = create_app(engine, settings=replace(OPEN, contact_cap="1/2d"))
    async with httpx.AsyncClient(transport=inside(app), base_url="http://mailer/api/v1") as client:
        yield client


async def add_delivered(engine: AsyncEngine, clients: Sequence[int], **ago: float) -> int:
    """Create a mailing whose messages to these clients were delivered so long ago."""
    at = datetime.now(UTC) - timedelta(**ago)
    mailing_id = await add_mailing(engine, clients=len(clients), start=at, status="finished")
    await add_messages(engine, mailing_id, clients, "delivered", at=at)
    return mailing_id


async def test_the_forecast_says_who_got_a_message_and_who_is_at_the_cap(
    capped: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 5)
    await add_delivered(engine, clients[:2], hours=3)
    await add_delivered(engine, clients[:3], hours=40)
    await add_delivered(engine, clients[3:], hours=60)
    mailing = await create_mailing(capped, NEW)
    other = await create_mailing(capped, LATER)

    answer = (await capped.get(f"/mailings/{mailing['id']}/forecast")).json()

    assert answer["forecast"]["clients"] == 2
    assert answer["forecast"]["at_cap"] == 3
    [shared] = answer["overlap"].pop("shared")
    assert (shared["id"], shared["clients"]) == (other["id"], 5)
    assert answer["overlap"] == {
        "clients": 5,
        "contacted": 2,
        "at_cap": 3,
        "is_estimate": False,
    }


async def test_without_a_cap_nobody_is_at_it(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await add_delivered(engine, await add_clients(engine, 2), hours=3)
    mailing = await create_mailing(api, NEW)
    answer = (await api.get(f"/mailings/{mailing['id']}/forecast")).json()
    assert answer["forecast"]["clients"] == 2
    assert answer["overlap"] == {
        "clients": 2,
        "contacted": 2,
        "at_cap": None,
        "is_estimate": False,
        "shared": [],
    }


async def test_service_mailings_have_no_overlap(
    capped: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 2)
    service = await add_delivered(engine, clients, hours=1)
    await execute(engine, f"UPDATE mailing SET purpose = 'service' WHERE id = {service}")  # noqa: S608  # a number
    mailing = await create_mailing(capped, NEW)
    answer = (await capped.get(f"/mailings/{mailing['id']}/forecast")).json()
    assert (answer["overlap"]["contacted"], answer["overlap"]["at_cap"]) == (0, 0)
    mailing = await create_mailing(capped, NEW | {"purpose": "service"})
    assert (await capped.get(f"/mailings/{mailing['id']}/forecast")).json()["overlap"] is None


async def test_only_mailings_at_the_same_time_with_shared_clients_are_named(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3, "916")
    await add_clients(engine, 2, "903")
    of_916 = await create_mailing(api, NEW | {"client_filter": "916"})
    both = await create_mailing(api, LATER)
    await create_mailing(api, LATER | {"client_filter": "903"})
    await create_mailing(api, LATER | {"draft": True})
    await create_mailing(api, LATER | {"purpose": "service"})
    after = {"datetime_start": "2040-02-01T12:00:00Z", "datetime_end": "2040-02-02T12:00:00Z"}
    await create_mailing(api, LATER | after)
    answer = (await api.get(f"/mailings/{of_916['id']}/forecast")).json()
    shared = [(other["id"], other["clients"]) for other in answer["overlap"]["shared"]]
    assert shared == [(both["id"], 3)]


async def test_an_unknown_mailing_has_no_forecast(api: httpx.AsyncClient) -> None:
    assert (await api.get("/mailings/7/forecast")).status_code == 404


# ---- pages -----------------------------------------------------------------------------------

CONTACTED = "2 of these clients got a marketing message in the last 24 hours."
AT_CAP = (
    "2 of these clients have reached the contact cap (1 message in 2 days) and will not get it."
)


async def test_the_preview_warns_of_the_overlap(
    capped: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await add_clients(engine, 3)
    await add_delivered(engine, clients[:2], hours=3)
    other = await create_mailing(capped, LATER)
    preview = await preview_form(capped, NEW_FORM | {"end": "2040-01-02T10:00"})
    assert CONTACTED in preview
    assert AT_CAP in preview
    assert f"3 of these clients also get #{other['id']} Winter sale" in preview
    assert "All clients will get it" not in preview
    service = await preview_form(capped, NEW_FORM | {"purpose": "service"})
    assert "marketing message in the last" not in service
    assert "contact cap" not in service


async def test_the_question_before_a_launch_warns_of_the_overlap(
    capped: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_delivered(engine, await add_clients(engine, 2), hours=3)
    draft = await create_mailing(capped, NEW | {"draft": True})
    question = visible_text(await get_html(capped, f"/mailings/{draft['id']}/launch"))
    assert CONTACTED in question
    assert AT_CAP in question
    asked = await post_form(capped, "/mailings/new", NEW_FORM | {"then": "send"})
    assert CONTACTED in visible_text(asked.text)
    assert AT_CAP in visible_text(asked.text)


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", "the client had reached the contact cap"),
        ("ru", "достигнут лимит сообщений для клиента"),
    ],
)
async def test_the_reason_is_shown_in_words(
    api: httpx.AsyncClient, engine: AsyncEngine, language: str, words: str
) -> None:
    mailing_id = await add_mailing(engine, clients=1)
    await add_messages(engine, mailing_id, await add_clients(engine, 1), "cancelled", "contact_cap")
    headers = {"Accept": "text/html", "Cookie": f"language={language}"}
    for path in (f"/mailings/{mailing_id}", f"/mailings/{mailing_id}/messages?reason=contact_cap"):
        assert words in (await api.get(f"{SITE}{path}", headers=headers)).text
    page = await get_html(api, f"/mailings/{mailing_id}")
    assert "1 client had reached the contact cap and will not get it." in visible_text(page)
