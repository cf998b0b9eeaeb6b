"""The pages of opt-outs, and opt-outs on the pages of clients and mailings."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, SITE
from tests.api.calls import NEW, create_mailing
from tests.api.forms import NEW_FORM, preview_form, save_form, visible_text
from tests.api.test_pages_clients import create_client, get_page, listed_phones, post_form
from tests.factories import execute, start_and_enqueue, value

ANNA, BORIS = "79160000001", "79030000002"


async def opt_out(api: httpx.AsyncClient, phone: str) -> int:
    """Opt a phone out through the API; return the opt-out's id."""
    return int((await api.post("/opt-outs", json={"phone": phone})).json()["id"])


async def get_text(api: httpx.AsyncClient, path: str) -> str:
    return visible_text(await get_page(api, path))


# ---- the list --------------------------------------------------------------------------------


async def test_without_opt_outs_the_list_says_so(api: httpx.AsyncClient) -> None:
    page = await get_text(api, "/opt-outs")
    assert "Nobody has opted out yet." in page
    assert "Find" not in page


async def test_the_list_shows_phones_of_clients_only(api: httpx.AsyncClient) -> None:
    client_id = await create_client(api, phone=ANNA)
    await opt_out(api, ANNA)
    await opt_out(api, BORIS)
    page = await get_page(api, "/opt-outs")
    assert listed_phones(page) == [ANNA]
    assert BORIS not in page
    assert f"/clients/{client_id}" in page
    text = visible_text(page)
    assert "2 opt-outs" in text
    assert "no client, phone not stored" in text


async def test_the_list_finds_a_phone_in_any_format_and_by_its_last_digits(
    api: httpx.AsyncClient,
) -> None:
    await create_client(api, phone=ANNA)
    await opt_out(api, ANNA)
    await opt_out(api, BORIS)
    assert listed_phones(await get_page(api, "/opt-outs?phone=8 916 000-00-01")) == [ANNA]
    found = await get_text(api, "/opt-outs?phone=8 903 000-00-02")
    assert "1 opt-out" in found
    assert "8 903 000-00-02 no client" in found
    # last digits find opt-outs of clients: of others no phone is stored
    assert listed_phones(await get_page(api, "/opt-outs?phone=0001")) == [ANNA]
    assert "No opt-outs match." in await get_text(api, "/opt-outs?phone=0002")
    missing = await get_text(api, "/opt-outs?phone=79990000000")
    assert "No opt-outs match." in missing
    wrong = await get_page(api, "/opt-outs?phone=916", status=400)
    assert "or its last 4 to 10 digits" in wrong


async def test_the_list_has_pages(api: httpx.AsyncClient) -> None:
    for number in range(3):
        await opt_out(api, f"7916000000{number}")
    page = await get_page(api, "/opt-outs?limit=2")
    assert "Older" in page
    assert "3 opt-outs" in page


async def test_the_form_opts_out_a_phone_in_any_format_once(api: httpx.AsyncClient) -> None:
    for _ in range(2):
        response = await post_form(api, "/opt-outs/new", {"phone": "+7 (916) 000-00-01"})
        assert response.headers["location"] == "/opt-outs"
    listed = (await api.get(f"/opt-outs?phone={ANNA}")).json()["results"]
    assert [row["source"] for row in listed] == ["page"]
    wrong = await post_form(api, "/opt-outs/new", {"phone": "916"}, status=400)
    assert "must be 7 and ten more digits" in wrong.text


async def test_a_phone_is_opted_in_after_a_question(api: httpx.AsyncClient) -> None:
    await create_client(api, phone=ANNA)
    opt_out_id = await opt_out(api, ANNA)
    question = await get_text(api, f"/opt-outs/{opt_out_id}/delete")
    assert f"Send marketing messages to {ANNA} again?" in question
    await post_form(api, f"/opt-outs/{opt_out_id}/delete")
    assert (await api.get("/opt-outs")).json()["count"] == 0
    await get_page(api, f"/opt-outs/{opt_out_id}/delete", status=404)
    await post_form(api, f"/opt-outs/{opt_out_id}/delete", status=404)


async def test_the_list_is_downloaded_as_csv(api: httpx.AsyncClient) -> None:
    await create_client(api, phone=ANNA)
    await opt_out(api, ANNA)
    url = f"{SITE}/opt-outs/export.csv"
    assert 'action="/opt-outs/export.csv"' in await get_page(api, "/opt-outs")
    header, line = (await api.get(url)).text.splitlines()
    assert header == "\ufeffphone,opted_out_at"
    assert line.startswith(f"{ANNA},")
    russian = await api.get(url, headers=BROWSER | {"Accept-Language": "ru"})
    assert russian.text.splitlines()[0] == "\ufeffphone;opted_out_at"
    chosen = await api.get(f"{url}?separator=semicolon", headers=BROWSER)
    assert chosen.text == russian.text
    assert (await api.get(f"{url}?separator=tab", headers=BROWSER)).status_code == 400


async def test_a_file_is_imported_and_its_wrong_lines_are_shown(api: httpx.AsyncClient) -> None:
    assert "File format" in await get_text(api, "/opt-outs/import")
    content = f"phone\n{ANNA}\n<b>916</b>\n"
    headers = BROWSER | {"Content-Type": "text/csv"}
    response = await api.post(f"{SITE}/opt-outs/import", content=content, headers=headers)
    text = visible_text(response.text)
    assert "Imported, but 1 line has errors" in text
    assert "&lt;b&gt;916" in response.text
    refused = await api.post(f"{SITE}/opt-outs/import", content="tag\nvip\n", headers=headers)
    assert "The file was not imported" in visible_text(refused.text)
    assert "<code>phone</code> is required" in refused.text


async def test_a_file_is_shown_before_it_is_imported(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    content = f"name,mobile,since\nA,{ANNA},2025-01-15T09:30:00Z\nB,{BORIS},\nC,=1,\n".encode()
    headers = BROWSER | {"Content-Type": "text/csv"}
    path = f"{SITE}/opt-outs/import"
    preview = await api.post(f"{path}/preview", content=content, headers=headers)
    text = visible_text(preview.text)
    assert "The first opt-outs, as they will be stored" in text
    assert "Opt 2 phones out" in text
    assert "good lines 2 lines with errors 1" in text
    assert preview.text.count('<option value="opted_out_at"') == 3  # one for each column
    assert await value(engine, "SELECT count(*) FROM opt_out") == 0
    chosen = await api.post(
        f"{path}/preview?columns=,phone,opted_out_at", content=content, headers=headers
    )
    assert "15 Jan 2025" in visible_text(chosen.text)
    rejected = await api.post(
        f"{path}/rejected?columns=,phone,opted_out_at", content=content, headers=headers
    )
    lines = rejected.content.decode().splitlines()
    assert lines[0].startswith("\ufeffname,phone,opted_out_at,")
    assert lines[1].startswith("C,'=1,,")
    assert len(lines) == 2
    await api.post(f"{path}?columns=,phone,opted_out_at", content=content, headers=headers)
    stored = await value(
        engine, "SELECT array_agg(opted_out_at < '2025-02-01' ORDER BY id) FROM opt_out"
    )
    assert sorted(stored) == [False, True]


@pytest.mark.parametrize("columns", ["phone,name", "phone,fields.name"])
async def test_a_column_that_opt_outs_do_not_have_cannot_be_chosen(
    api: httpx.AsyncClient, columns: str
) -> None:
    headers = BROWSER | {"Content-Type": "text/csv"}
    content, path = f"phone,name\n{ANNA},A\n", f"{SITE}/opt-outs/import"
    preview = await api.post(f"{path}/preview?columns={columns}", content=content, headers=headers)
    assert "columns must name a field for each column" in visible_text(preview.text)
    refused = await api.post(f"{path}?columns={columns}", content=content, headers=headers)
    assert refused.status_code == 400
    assert "<code>columns</code>" in refused.text


async def test_a_file_without_good_lines_offers_only_its_wrong_lines(
    api: httpx.AsyncClient,
) -> None:
    headers = {**BROWSER, "Content-Type": "text/csv", "Accept-Language": "ru"}
    path = f"{SITE}/opt-outs/import"
    preview = await api.post(f"{path}/preview", content=b"phone\n916\n", headers=headers)
    assert "нет телефонов, которые можно отписать" in preview.text
    assert 'data-action="rejected"' in preview.text
    assert 'data-action="import"' not in preview.text
    unknown = await api.post(f"{path}/preview", content=b"a,b\n1,2\n", headers=headers)
    assert unknown.status_code in {200, 400}
    assert 'data-action="import"' not in unknown.text


async def test_the_example_file_can_be_imported(api: httpx.AsyncClient) -> None:
    page = await get_page(api, "/opt-outs/import")
    content = page.partition('<pre class="example">')[2].partition("</pre>")[0]
    assert content
    headers = {"Content-Type": "text/csv"}
    imported = await api.post("/opt-outs/import", content=content, headers=headers)
    assert (imported.json()["created"], imported.json()["rejected"]) == (2, 0)


# ---- clients ---------------------------------------------------------------------------------


async def test_a_client_is_opted_out_and_in_again(api: httpx.AsyncClient) -> None:
    client_id = await create_client(api, phone=ANNA)
    path = f"/clients/{client_id}"
    assert f"{path}/opt-out" in await get_page(api, path)
    assert f"Opt client {ANNA} out?" in await get_text(api, f"{path}/opt-out")
    for _ in range(2):
        await post_form(api, f"{path}/opt-out")
    page = await get_page(api, path)
    assert "This client opted out on" in page
    assert f"{path}/opt-in" in page
    assert f"Send marketing messages to {ANNA} again?" in await get_text(api, f"{path}/opt-in")
    for _ in range(2):
        await post_form(api, f"{path}/opt-in")
    assert "This client opted out on" not in await get_page(api, path)


async def test_the_list_of_clients_shows_and_finds_opted_out_clients(
    api: httpx.AsyncClient,
) -> None:
    await create_client(api, phone=ANNA)
    await create_client(api, phone=BORIS)
    await opt_out(api, ANNA)
    assert "79160000001 opted out" in await get_text(api, "/clients")
    assert listed_phones(await get_page(api, "/clients?opted_out=true")) == [ANNA]
    others = await get_page(api, "/clients?opted_out=false&limit=1")
    assert listed_phones(others) == [BORIS]
    assert '<input type="hidden" name="opted_out" value="false">' in others


async def test_the_question_before_a_deletion_says_that_the_opt_out_stays(
    api: httpx.AsyncClient,
) -> None:
    client_id = await create_client(api, phone=ANNA)
    await opt_out(api, ANNA)
    assert "The opt-out stays, without the phone" in await get_text(
        api, f"/clients/{client_id}/delete"
    )


# ---- mailings --------------------------------------------------------------------------------


async def test_the_preview_counts_clients_who_have_opted_out(api: httpx.AsyncClient) -> None:
    for phone in (ANNA, BORIS, "79990000003"):
        await create_client(api, phone=phone)
    await opt_out(api, ANNA)
    form = NEW_FORM | {"text": "a" * 161}
    preview = await preview_form(api, form)
    assert "parts in total 4" in preview
    assert "1 client of the audience has opted out and will not get it." in preview
    assert "2 clients will get it." in preview
    service = await preview_form(api, form | {"purpose": "service"})
    assert "parts in total 6" in service
    assert "opted out and will not get it" not in service
    assert "3 clients will get it." in service
    for phone in (BORIS, "79990000003"):
        await opt_out(api, phone)
    nobody = await preview_form(api, form)
    assert "All clients of the audience have opted out" in nobody


async def test_the_purpose_is_saved_and_shown(api: httpx.AsyncClient) -> None:
    mailing = await save_form(api, "/mailings/new", NEW_FORM | {"purpose": "service"})
    assert mailing["purpose"] == "service"
    page = await get_text(api, f"/mailings/{mailing['id']}")
    assert "Service: sent to clients who have opted out, too" in page


async def test_the_purpose_of_a_started_mailing_is_shown_and_fixed(
    api: httpx.AsyncClient,
) -> None:
    start = datetime.now(UTC) - timedelta(minutes=1)
    mailing = await create_mailing(api, NEW | {"datetime_start": start.isoformat()})
    page = await get_page(api, f"/mailings/{mailing['id']}/edit")
    assert '<input type="hidden" name="purpose" value="marketing">' in page
    assert "Marketing. Cannot be changed." in visible_text(page)


async def test_the_page_of_a_mailing_shows_opted_out_messages(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    for phone in (ANNA, BORIS):
        await create_client(api, phone=phone)
    await opt_out(api, ANNA)
    start = datetime.now(UTC) - timedelta(minutes=1)
    mailing = await create_mailing(api, NEW | {"datetime_start": start.isoformat()})
    assert "has opted out" in await get_text(api, f"/mailings/{mailing['id']}")
    await start_and_enqueue(engine)
    page = await get_text(api, f"/mailings/{mailing['id']}")
    assert "1 client has opted out and will not get it." in page
    assert "the client has opted out Cancelled 1" in page.replace("cancelled", "Cancelled")


@pytest.mark.parametrize("language", ["en", "ru"])
async def test_the_reason_is_shown_in_words(
    api: httpx.AsyncClient, engine: AsyncEngine, language: str
) -> None:
    await create_client(api, phone=ANNA)
    await opt_out(api, ANNA)
    start = datetime.now(UTC) - timedelta(minutes=1)
    mailing = await create_mailing(api, NEW | {"datetime_start": start.isoformat()})
    await start_and_enqueue(engine)
    await execute(engine, "ANALYZE message")
    headers = {"Accept": "text/html", "Cookie": f"language={language}"}
    response = await api.get(f"{SITE}/mailings/{mailing['id']}/messages", headers=headers)
    words = {"en": "the client has opted out", "ru": "клиент отказался от рассылок"}
    assert words[language] in response.text
