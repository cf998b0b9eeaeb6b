"""Pages that send ask with the number of clients, and send only what the user has agreed to."""

import re
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, NEW, create_mailing
from tests.api.forms import (
    HTMX,
    NEW_FORM,
    SITE,
    confirmation,
    edit_form_values,
    form_errors,
    form_values,
    get_html,
    post_form,
    preview_form,
    visible_text,
)
from tests.factories import add_clients, execute, start_and_enqueue

DRAFT = NEW | {"draft": True}
PAST = {"start": "2020-01-01T09:00"}
AT_ONCE = "The start is in the past: sending begins at once."


async def shown_intent(api: httpx.AsyncClient, form: dict[str, str], query: str = "") -> str:
    """Return what the button of the form sends back about itself, after the preview of a form."""
    page = (await api.post(f"{SITE}/mailings/preview{query}", data=form, headers=HTMX)).text
    [token] = re.findall('name="shown" value="([^"]*)"', page)
    return str(token)


async def mailings(api: httpx.AsyncClient) -> list[dict[str, Any]]:
    """Return all mailings, newest first."""
    listed: list[dict[str, Any]] = (await api.get("/mailings")).json()["results"]
    return listed


# ---- the form --------------------------------------------------------------------------------


async def test_a_form_is_saved_as_a_draft_without_a_question(api: httpx.AsyncClient) -> None:
    response = await post_form(api, "/mailings/new", NEW_FORM | PAST | {"then": "draft"})
    assert response.status_code == 303
    [draft] = await mailings(api)
    assert draft["status"] == "draft"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({}, "Schedule for 1 Jan 2040, 09:00 for 3 clients"),
        (PAST, "Send to 3 clients now"),
        ({"audience": "terms", "terms": "912"}, "Schedule for 1 Jan 2040, 09:00 for 1 client"),
        ({"audience": ""}, "Schedule for 1 Jan 2040, 09:00"),
        ({"audience": "", "start": ""}, "Schedule"),
        ({"audience": ""} | PAST, "Send now"),
    ],
)
async def test_the_buttons_of_the_form_say_what_they_do(
    api: httpx.AsyncClient, engine: AsyncEngine, typed: dict[str, str], words: str
) -> None:
    await add_clients(engine, 2, "916")
    await add_clients(engine, 1, "912")
    preview = await preview_form(api, NEW_FORM | typed)
    assert f"Save draft {words} Discard" in preview
    assert (AT_ONCE in preview) == ("now" in words)


async def test_clients_who_have_opted_out_are_not_in_the_number(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    phone = (await api.get("/clients")).json()["results"][0]["phone"]
    await api.post("/opt-outs", json={"phone": phone})
    assert "for 2 clients" in await preview_form(api, NEW_FORM)
    assert "for 3 clients" in await preview_form(api, NEW_FORM | {"purpose": "service"})


async def test_a_button_that_was_up_to_date_needs_no_confirmation(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    form = NEW_FORM | {"shown": await shown_intent(api, NEW_FORM), "then": "send"}
    assert (await post_form(api, "/mailings/new", form)).status_code == 303
    [mailing] = await mailings(api)
    assert (mailing["status"], mailing["clients_count"]) == ("scheduled", 3)


@pytest.mark.parametrize("shown", [None, "", "schedule 2 2040-01-01T08:00:00+00:00"])
async def test_a_button_that_was_not_up_to_date_leads_to_a_question_with_its_words(
    api: httpx.AsyncClient, engine: AsyncEngine, shown: str | None
) -> None:
    await add_clients(engine, 3)
    form = NEW_FORM | {"text": "Two\nlines", "then": "send"}
    form |= {} if shown is None else {"shown": shown}

    asked = await post_form(api, "/mailings/new", form)

    assert asked.status_code == 200
    assert await mailings(api) == []
    assert "Schedule for 1 Jan 2040, 09:00 for 3 clients?" in visible_text(asked.text)
    confirmed = await post_form(api, "/mailings/new", confirmation(asked.text))
    assert confirmed.status_code == 303
    [mailing] = await mailings(api)
    assert (mailing["status"], mailing["text"]) == ("scheduled", "Two\nlines")


async def test_the_question_is_asked_again_when_its_answer_would_do_something_else(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    asked = await post_form(api, "/mailings/new", NEW_FORM)
    await add_clients(engine, 1)
    again = await post_form(api, "/mailings/new", confirmation(asked.text))
    assert again.status_code == 200
    assert "for 4 clients?" in visible_text(again.text)
    assert await mailings(api) == []


async def test_the_question_leads_back_to_the_form_as_it_was(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 3)
    asked = await post_form(api, "/mailings/new", NEW_FORM)
    back = await post_form(api, "/mailings/new", confirmation(asked.text) | {"then": "edit"})
    assert back.status_code == 200
    values = form_values(back.text)
    assert {name: values[name] for name in NEW_FORM} == NEW_FORM


async def test_above_a_number_of_clients_the_number_must_be_typed(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1_001)
    form = NEW_FORM | PAST
    asked = await post_form(
        api, "/mailings/new", form | {"shown": await shown_intent(api, form), "then": "send"}
    )
    assert asked.status_code == 200
    assert "Type 1,001 to confirm" in visible_text(asked.text)
    assert AT_ONCE in visible_text(asked.text)
    agreed = confirmation(asked.text)
    for typed in ("", "1000", "all"):
        refused = await post_form(api, "/mailings/new", agreed | {"typed": typed})
        assert refused.status_code == 400
        assert form_errors(refused.text) == {"typed": "is not the number of clients above"}
    assert await mailings(api) == []
    sent = await post_form(api, "/mailings/new", agreed | {"typed": "1,001"})
    assert sent.status_code == 303
    assert len(await mailings(api)) == 1


# ---- the form of a draft and of a mailing that was launched ----------------------------------


async def test_the_form_of_a_draft_saves_it_or_launches_it(api: httpx.AsyncClient) -> None:
    draft = await create_mailing(api, DUE | {"draft": True})
    path = f"/mailings/{draft['id']}/edit"
    form = await edit_form_values(api, draft) | {"text": "Later.", "then": "draft"}
    assert (await post_form(api, path, form)).status_code == 303
    assert [(m["status"], m["text"]) for m in await mailings(api)] == [("draft", "Later.")]

    form = await edit_form_values(api, draft) | {"text": "Now.", "start": "2040-01-01T10:00"}
    asked = await post_form(api, path, form | {"then": "send"})
    assert (await post_form(api, path, confirmation(asked.text))).status_code == 303
    assert [(m["status"], m["text"]) for m in await mailings(api)] == [("scheduled", "Now.")]


async def test_a_draft_that_ended_is_saved_but_not_launched(api: httpx.AsyncClient) -> None:
    draft = await create_mailing(api, DUE | {"draft": True, "datetime_end": "2020-01-02T09:00:00Z"})
    path = f"/mailings/{draft['id']}/edit"
    form = await edit_form_values(api, draft)
    assert (await post_form(api, path, form | {"then": "draft"})).status_code == 303
    refused = await post_form(api, path, form | {"then": "send"})
    assert refused.status_code == 400
    assert form_errors(refused.text) == {"end": "must be in the future"}


async def test_saving_a_draft_that_was_launched_meanwhile_is_a_conflict(
    api: httpx.AsyncClient,
) -> None:
    draft = await create_mailing(api, DRAFT)
    form = await edit_form_values(api, draft) | {"text": "Mine.", "then": "draft"}
    await api.post(f"/mailings/{draft['id']}/launch")
    refused = await post_form(api, f"/mailings/{draft['id']}/edit", form)
    assert refused.status_code == 409
    assert "another user has launched it" in visible_text(refused.text)
    [mailing] = await mailings(api)
    assert mailing["text"] == NEW["text"]


async def test_a_larger_audience_of_a_running_mailing_is_asked_about(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 2, "912")
    mailing = await create_mailing(api, DUE | {"client_filter": "912"})
    await start_and_enqueue(engine)
    await add_clients(engine, 3, "916")
    await add_clients(engine, 1, "912")  # has joined since the start
    path = f"/mailings/{mailing['id']}/edit"
    form = await edit_form_values(api, mailing) | {"audience": "everybody"}
    query = f"?mailing={mailing['id']}"
    preview = await preview_form(api, form, query)
    assert "4 more clients will get it." in preview
    assert "Save: 4 more clients will get it" in preview

    asked = await post_form(api, path, form | {"shown": await shown_intent(api, form, query)})

    assert asked.status_code == 200
    assert "Save: 4 more clients will get it?" in visible_text(asked.text)
    assert (await api.get(f"/mailings/{mailing['id']}")).json()["client_filter"] == "912"
    assert (await post_form(api, path, confirmation(asked.text))).status_code == 303
    assert (await api.get(f"/mailings/{mailing['id']}")).json()["client_filter"] is None


async def test_a_change_of_a_running_mailing_for_no_more_clients_is_saved_at_once(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 2, "912")
    mailing = await create_mailing(api, DUE)
    await start_and_enqueue(engine)
    form = await edit_form_values(api, mailing) | {"audience": "terms", "terms": "912"}
    assert "Save changes" in await preview_form(api, form, f"?mailing={mailing['id']}")
    assert (await post_form(api, f"/mailings/{mailing['id']}/edit", form)).status_code == 303


# ---- the page of a mailing -------------------------------------------------------------------


async def test_a_draft_is_launched_from_its_page_after_a_question(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    draft = await create_mailing(api, DRAFT)
    await add_clients(engine, 2)
    path = f"/mailings/{draft['id']}"
    page = visible_text(await get_html(api, path))
    assert "Draft Nothing is sent until it is launched." in page
    assert "Schedule for 1 Jan 2040, 09:00 Start now Edit Duplicate Delete" in page
    question = await get_html(api, f"{path}/launch")
    assert "Schedule for 1 Jan 2040, 09:00 for 2 clients?" in visible_text(question)
    assert (await post_form(api, f"{path}/launch", {})).status_code == 200  # asks again
    assert (await api.get(path)).json()["status"] == "draft"

    launched = await post_form(api, f"{path}/launch", agreement(question))

    assert launched.status_code == 303
    assert (await api.get(path)).json()["status"] == "scheduled"
    refused = await post_form(api, f"{path}/launch", agreement(question))
    assert refused.status_code == 409


@pytest.mark.parametrize("payload", [NEW, DRAFT], ids=["scheduled", "draft"])
async def test_a_mailing_is_started_now_after_a_question(
    api: httpx.AsyncClient, engine: AsyncEngine, payload: dict[str, Any]
) -> None:
    await add_clients(engine, 2)
    mailing = await create_mailing(api, payload)
    path = f"/mailings/{mailing['id']}"
    question = await get_html(api, f"{path}/start")
    assert "Send to 2 clients now?" in visible_text(question)
    assert (await post_form(api, f"{path}/start", agreement(question))).status_code == 303
    assert await start_and_enqueue(engine) == mailing["id"]
    assert (await api.get(path)).json()["status"] == "running"
    refused = await post_form(api, f"{path}/start", agreement(question))
    assert refused.status_code == 409
    assert 'id="start"' not in await get_html(api, path)


@pytest.mark.parametrize("verb", ["launch", "start"])
async def test_a_draft_that_was_changed_after_the_question_is_not_sent(
    api: httpx.AsyncClient, engine: AsyncEngine, verb: str
) -> None:
    await add_clients(engine, 2)
    draft = await create_mailing(api, DRAFT)
    path = f"/mailings/{draft['id']}"
    question = await get_html(api, f"{path}/{verb}")
    assert draft["text"] in visible_text(question)
    assert (await api.patch(path, json={"text": "Other."})).status_code == 200

    again = await post_form(api, f"{path}/{verb}", agreement(question))

    assert again.status_code == 200
    assert "Other." in visible_text(again.text)
    assert (await api.get(path)).json()["status"] == "draft"
    assert (await post_form(api, f"{path}/{verb}", agreement(again.text))).status_code == 303


async def test_a_large_draft_is_launched_only_with_its_number_of_clients(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 1_001)
    draft = await create_mailing(api, DRAFT)
    path = f"/mailings/{draft['id']}"
    question = await get_html(api, f"{path}/launch")
    refused = await post_form(api, f"{path}/launch", agreement(question) | {"typed": "100"})
    assert refused.status_code == 400
    assert form_errors(refused.text) == {"typed": "is not the number of clients above"}
    assert (await api.get(path)).json()["status"] == "draft"
    sent = await post_form(api, f"{path}/launch", agreement(question) | {"typed": "1001"})
    assert sent.status_code == 303


async def test_a_draft_that_ended_says_that_a_later_end_is_needed(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    draft = await create_mailing(api, DRAFT)
    await execute(
        engine, "UPDATE mailing SET datetime_start = '2020-01-01', datetime_end = '2020-01-02'"
    )
    path = f"/mailings/{draft['id']}"
    assert "Its end has passed: set a later end first." in visible_text(await get_html(api, path))
    for verb in ("launch", "start"):
        page = await get_html(api, f"{path}/{verb}", status=409)
        assert "The end has passed. Set a later end first." in visible_text(page)


def agreement(question: str) -> dict[str, str]:
    """Return what a browser submits if the user confirms the question, without typing."""
    [token] = re.findall('name="agreed" value="([^"]*)"', question)
    return {"agreed": token}
