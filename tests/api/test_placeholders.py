"""Placeholders in the API and on the pages: what is refused, and what is said before sending."""

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import get_page
from tests.api.calls import NEW, create_mailing, field_errors, messages_by_client, update_messages
from tests.api.forms import (
    NEW_FORM,
    edit_form_values,
    form_errors,
    get_html,
    post_form,
    preview_form,
    save_form,
    visible_text,
)
from tests.factories import add_clients, execute, start_and_enqueue

TEXT = "Dear {{ name }}, your bonus is {{ bonus | 0 }}."
OLD_TEXT = "Dear {{ name }}, }} ü"


async def create_clients(api: httpx.AsyncClient) -> list[int]:
    """Create three clients, the last of them without a name; return their ids."""
    fields: list[dict[str, str]] = [{"name": "Anna"}, {"name": "Я" * 60}, {"bonus": "5"}]
    created = [
        await api.post("/clients", json={"phone": f"7916000000{number}", "fields": values})
        for number, values in enumerate(fields)
    ]
    return [response.json()["id"] for response in created]


async def create_old(api: httpx.AsyncClient, engine: AsyncEngine) -> int:
    """Create a mailing from before there were placeholders, and return its id."""
    mailing = await create_mailing(api, NEW)
    await execute(engine, f"UPDATE mailing SET text = '{OLD_TEXT}', template = NULL")  # noqa: S608  # a constant
    return int(mailing["id"])


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_what_looks_like_a_placeholder_and_is_none_is_refused(
    api: httpx.AsyncClient, method: str
) -> None:
    mailing = await create_mailing(api, NEW)
    path = "/mailings" if method == "POST" else f"/mailings/{mailing['id']}"
    values = NEW if method == "POST" else {}
    response = await api.request(method, path, json=values | {"text": "Dear {{ Name }}"})
    assert response.status_code == 400
    assert field_errors(response) == {
        "text": "has a placeholder with a wrong name at character 6: use up to 32 of a-z, digits"
        " and _, and a letter first"
    }


async def test_place_is_that_in_the_text_as_it_is_stored(api: httpx.AsyncClient) -> None:
    response = await api.post("/mailings", json=NEW | {"text": "e\u0301e\u0301 }}"})
    assert field_errors(response)["text"].endswith("at character 4")
    response = await api.post("/mailings", json=NEW | {"text": "{{" * 1_000})
    assert field_errors(response)["text"].startswith("must be 1 to 1,600 characters")


async def test_mailing_lists_its_placeholders(api: httpx.AsyncClient) -> None:
    mailing = await create_mailing(api, NEW | {"text": TEXT})
    assert mailing["text"] == TEXT
    assert mailing["placeholders"] == ["name", "bonus"]
    changed = await api.patch(f"/mailings/{mailing['id']}", json={"text": "Literal { }"})
    assert changed.json()["placeholders"] == []


async def test_old_text_with_braces_stays_when_another_field_changes(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await create_old(api, engine)
    changed = await api.patch(f"/mailings/{mailing_id}", json={"name": "Old", "text": "{{ a }}"})
    assert changed.json()["placeholders"] == ["a"]
    mailing_id = await create_old(api, engine)
    changed = await api.patch(f"/mailings/{mailing_id}", json={"name": "Old"})
    assert changed.status_code == 200
    assert (changed.json()["text"], changed.json()["placeholders"]) == (OLD_TEXT, [])


async def test_form_of_an_old_text_with_braces_saves_other_fields(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await create_old(api, engine)
    form = await edit_form_values(api, {"id": mailing_id})
    preview = await preview_form(api, form, f"?mailing={mailing_id}")
    assert "Text: has" not in preview
    saved = await save_form(api, f"/mailings/{mailing_id}/edit", form | {"name": "Old"})
    assert (saved["name"], saved["text"], saved["placeholders"]) == ("Old", OLD_TEXT, [])
    form = await edit_form_values(api, saved) | {"text": OLD_TEXT + "!"}
    response = await post_form(api, f"/mailings/{mailing_id}/edit", form)
    assert "closing braces" in form_errors(response.text)["text"]


async def test_message_shows_the_text_of_its_client(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    clients = await create_clients(api)
    mailing = await create_mailing(api, NEW | {"text": TEXT})
    await execute(engine, "UPDATE mailing SET datetime_start = now()")
    await start_and_enqueue(engine)
    await update_messages(
        engine,
        clients[0],
        status="delivered",
        attempts=1,
        text_version=1,
        field_values={"name": "Bella"},
    )
    await update_messages(engine, clients[2], status="cancelled", reason="missing_field")
    messages = await messages_by_client(api, mailing["id"])
    texts = [(await api.get(f"/messages/{messages[client]['id']}")).json() for client in clients]
    assert [message["text"] for message in texts] == [
        "Dear Bella, your bonus is 0.",
        f"Dear {'Я' * 60}, your bonus is 0.",
        "Dear {{ name }}, your bonus is 5.",
    ]
    page = visible_text(await get_page(api, f"/mailings/{mailing['id']}"))
    assert "1 client lacks a field of the text and will not get it." in page
    assert "the client lacks a field that the text has" in page


async def test_preview_shows_examples_parts_and_who_lacks_a_field(api: httpx.AsyncClient) -> None:
    clients = await create_clients(api)
    preview = await preview_form(api, NEW_FORM | {"text": TEXT})
    assert "1 part 1 client 2 parts 1 client parts in total 3" in preview
    assert "79160000000 1 part Dear Anna, your bonus is 0." in preview
    assert "79160000002 lacks the field name and does not get the message" in preview
    assert "1 client lacks a field of the text and will not get it: name." in preview
    assert f"For example, this client: #{clients[2]}" in preview
    assert "For 1 client the fields require Unicode" in preview
    assert "1 of 3 clients will not get it, because of their fields." in preview

    preview = await preview_form(api, NEW_FORM | {"text": "Dear {{ nmae | friend }}"})
    assert "No client has the field nmae." in preview
    assert "1 part 3 clients" in preview
    preview = await preview_form(api, NEW_FORM | {"text": TEXT, "audience": ""})
    assert "The parts depend on the fields of the clients." in preview
    preview = await preview_form(api, NEW_FORM | {"text": "Dear {{ name"})
    assert "Text: has opening braces without closing ones at character 6" in preview


async def test_form_offers_the_fields_that_clients_have(api: httpx.AsyncClient) -> None:
    assert "Fields of the clients" not in await get_html(api, "/mailings/new")
    await create_clients(api)
    page = await get_html(api, "/mailings/new")
    assert "Fields of the clients:" in page
    assert '<code data-insert-into="text">{{ bonus }}</code>' in page


async def test_questions_before_sending_say_how_many_lack_a_field(api: httpx.AsyncClient) -> None:
    await create_clients(api)
    mailing = await create_mailing(api, NEW | {"text": TEXT, "draft": True})
    lacks = "1 client lacks a field of the text and will not get it: name."
    for verb in ("launch", "start"):
        assert lacks in visible_text(await get_html(api, f"/mailings/{mailing['id']}/{verb}"))
    assert lacks in visible_text(await get_html(api, f"/mailings/{mailing['id']}"))
    question = await post_form(api, "/mailings/new", NEW_FORM | {"text": TEXT, "then": "send"})
    assert question.status_code == 200
    assert lacks in visible_text(question.text)
    assert "1 part 1 client 2 parts 1 client" in visible_text(question.text)


async def test_preview_of_a_large_audience_says_that_it_is_an_estimate(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add_clients(engine, 12_000)
    preview = await preview_form(api, NEW_FORM | {"text": "Dear {{ name }}"})
    assert "12,000 clients lack a field of the text" in preview
    assert "These numbers are estimates from the fields of" in preview


async def test_errors_are_translated(api: httpx.AsyncClient) -> None:
    form = NEW_FORM | {"text": "Dear {{ Name }}"}
    response = await api.post(
        "http://mailer/mailings/new",
        data=form,
        headers={"Accept": "text/html", "Origin": "http://mailer", "Cookie": "language=ru"},
    )
    assert "32" in form_errors(response.text)["text"]
    assert "has a placeholder" not in form_errors(response.text)["text"]


# ---- texts from before there were placeholders ------------------------------------------------


@pytest.mark.parametrize("old_text", ["Hi {name}", "Hi {{ name }}"])
async def test_question_before_a_change_takes_an_old_text_as_it_is(
    api: httpx.AsyncClient, engine: AsyncEngine, old_text: str
) -> None:
    await create_clients(api)
    mailing = await create_mailing(api, NEW)
    await execute(engine, f"UPDATE mailing SET text = '{old_text}', template = NULL")  # noqa: S608  # a constant
    form = await edit_form_values(api, mailing) | {"audience": "terms", "terms": "916"}
    form |= {"then": "send", "shown": ""}
    response = await post_form(api, f"/mailings/{mailing['id']}/edit", form)
    assert response.status_code == 200
    question = visible_text(response.text)
    assert "for 3 clients?" in question
    assert "lack" not in question
    saved = await save_form(api, f"/mailings/{mailing['id']}/edit", form)
    assert (saved["text"], saved["placeholders"]) == (old_text, [])


# ---- clients who do not get the text, in everything that is said before sending ---------------


async def test_forecast_names_clients_who_do_not_get_the_text(api: httpx.AsyncClient) -> None:
    await create_clients(api)
    long = {"phone": "79160000009", "fields": {"name": "x" * 200}}
    await api.post("/clients", json=long)
    mailing = await create_mailing(api, NEW | {"text": "{{ name }}" * 8 + "x"})
    expected = (await api.get(f"/mailings/{mailing['id']}/forecast")).json()["forecast"]
    assert (expected["clients"], expected["missing_field"], expected["text_too_long"]) == (2, 1, 1)
    assert expected["is_text_estimated"] is False
    page = visible_text(await get_page(api, f"/mailings/{mailing['id']}"))
    forecast = page[page.index("Forecast") :]
    assert "The sending windows of all remaining clients open in time" in forecast
    assert "1 client lacks a field of the text and will not get it." in forecast
    assert "For 1 client the text is too long with the fields: it is not sent." in forecast


async def test_nobody_gets_a_text_with_a_field_that_nobody_has(api: httpx.AsyncClient) -> None:
    await create_clients(api)
    preview = await preview_form(api, NEW_FORM | {"text": "Hello {{ shop }}"})
    assert "Nobody will get it 3 clients lack a field of the text and will not get it." in preview
    assert "3 of 3 clients will not get it, because of their fields. See As SMS." in preview
    assert "all clients" not in preview
    assert "for 0 clients" in preview


async def test_preview_tells_both_reasons_why_clients_do_not_get_it(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await create_clients(api)
    await execute(engine, "UPDATE client SET time_zone = 'Asia/Tokyo'")
    too_late = {"start": "2040-01-01T19:00", "end": "2040-01-01T20:00"}  # in Berlin
    preview = await preview_form(api, NEW_FORM | too_late | {"text": TEXT})
    assert "2 of 2 remaining clients will not get it. See the reasons under Forecast." in preview
    assert "1 of 3 clients will not get it, because of their fields. See As SMS." in preview


@pytest.mark.parametrize("is_draft", [True, False])
async def test_number_to_agree_to_is_of_clients_who_get_the_text(
    api: httpx.AsyncClient, *, is_draft: bool
) -> None:
    await create_clients(api)
    if is_draft:
        draft = await create_mailing(api, NEW | {"text": TEXT, "draft": True})
        page = visible_text(await get_page(api, f"/mailings/{draft['id']}/launch"))
    else:
        form = NEW_FORM | {"text": TEXT, "then": "send"}
        assert "for 2 clients" in await preview_form(api, form)
        page = visible_text((await post_form(api, "/mailings/new", form)).text)
    assert "for 2 clients?" in page
    assert "1 client lacks a field of the text and will not get it: name." in page
