"""The pages of lists of clients, and lists on the pages of clients, imports and mailings."""

import re

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, ESCAPED, HOSTILE, SITE, signed_in_browser
from tests.api.calls import NEW, create_mailing
from tests.api.forms import (
    NEW_FORM,
    form_errors,
    form_values,
    get_html,
    post_form,
    preview_form,
    save_form,
    visible_text,
)
from tests.factories import add_clients, put_on_list
from tests.workbook_reading import load, values

PATH = "/clients/lists"
ANNA = "79160000001"


@pytest.fixture
async def list_id(api: httpx.AsyncClient, engine: AsyncEngine) -> int:
    """A list with Anna and another client; a third client is on no list."""
    await api.post("/clients", json={"phone": ANNA, "tag": "vip"})
    [other, _] = await add_clients(engine, 2, "912")
    return await put_on_list(engine, "Spring, sale", [1, other])


async def get_text(api: httpx.AsyncClient, path: str, status: int = 200) -> str:
    return visible_text(await get_html(api, path, status=status))


# ---- the lists -------------------------------------------------------------------------------


async def test_without_lists_the_page_says_how_to_get_one(api: httpx.AsyncClient) -> None:
    page = await get_text(api, PATH)
    assert "There are no lists yet." in page
    assert "Import a file" in page


@pytest.mark.usefixtures("list_id")
async def test_the_lists_have_their_number_of_clients_and_are_found_by_name(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await put_on_list(engine, "Autumn", [])
    page = await get_text(api, PATH)
    assert "2 lists" in page
    assert re.search(r"Autumn 0 .*Spring, sale 2 ", page)
    page = await get_text(api, f"{PATH}?search=UTU")
    assert "1 list " in page
    assert "Spring" not in page
    assert "No list has this in its name." in await get_text(api, f"{PATH}?search=x")


async def test_a_list_is_created_once_with_its_name(api: httpx.AsyncClient) -> None:
    response = await post_form(api, f"{PATH}/new", {"name": f" {HOSTILE} "})
    assert response.status_code == 303
    page = await get_html(api, response.headers["location"])
    assert ESCAPED in page
    assert "Nobody is on this list yet." in page
    response = await post_form(api, f"{PATH}/new", {"name": HOSTILE.upper()})
    assert response.status_code == 409
    assert form_errors(response.text) == {"name": "Another list has this name."}
    response = await post_form(api, f"{PATH}/new", {"name": " "})
    assert response.status_code == 400
    assert form_errors(response.text) == {"name": "must be 1 to 100 characters"}


# ---- one list --------------------------------------------------------------------------------


async def test_the_page_of_a_list_has_its_clients_page_by_page(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    list_id = await put_on_list(engine, "Spring", await add_clients(engine, 3))
    page = await get_html(api, f"{PATH}/{list_id}?limit=2")
    assert "3 clients" in page
    assert page.count("Take off the list<span") == 2
    [older] = re.findall(r'href="([^"]+)" rel="next"', page)
    page = await get_html(api, older.replace("&amp;", "&"))
    assert page.count("Take off the list<span") == 1


async def test_a_client_is_put_on_the_list_in_any_way_of_writing_the_phone(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await api.post("/clients", json={"phone": ANNA})
    list_id = await put_on_list(engine, "Spring", [])
    path = f"{PATH}/{list_id}/add"
    for flash in ("list-client-added", "list-client-unchanged"):
        response = await post_form(api, path, {"phone": "8 (916) 000-00-01"})
        assert response.status_code == 303
        assert f"done={flash}" in response.headers["set-cookie"]
    response = await post_form(api, path, {"phone": "8 999 000-00-01"})
    assert response.status_code == 400
    assert form_errors(response.text)["phone"].startswith("is the phone of no client")
    response = await post_form(api, path, {"phone": "12"})
    assert form_errors(response.text)["phone"].startswith("must be 7 and ten more digits")
    assert ANNA in response.text  # the page still shows the list


async def test_a_client_is_taken_off_the_list(api: httpx.AsyncClient, list_id: int) -> None:
    for given in ("1", "1", "x", "", "9" * 30):
        response = await post_form(api, f"{PATH}/{list_id}/remove", {"client_id": given})
        assert response.status_code == 303
    page = await get_html(api, f"{PATH}/{list_id}")
    assert ANNA not in page
    assert "1 client" in page


async def test_a_list_is_deleted_after_a_question(api: httpx.AsyncClient, list_id: int) -> None:
    page = await get_text(api, f"{PATH}/{list_id}/delete")
    assert "Delete the list Spring, sale?" in page
    assert "2 clients are on it. They stay in the directory." in page
    response = await post_form(api, f"{PATH}/{list_id}/delete", {})
    assert response.status_code == 303
    assert (await api.get(f"/lists/{list_id}")).status_code == 404
    await get_html(api, f"{PATH}/{list_id}", status=404)


async def test_the_question_names_the_mailings_that_need_the_list(
    api: httpx.AsyncClient, list_id: int
) -> None:
    mailing = await create_mailing(api, NEW | {"client_filter": {"lists": ["spring, SALE"]}})
    page = await get_html(api, f"{PATH}/{list_id}/delete")
    assert "The list cannot be deleted: a mailing for it has not ended." in page
    assert f'href="/mailings/{mailing["id"]}"' in page
    assert "Delete the list</button>" not in page
    response = await api.post(
        f"{SITE}{PATH}/{list_id}/delete", headers=BROWSER | {"Cookie": "language=ru"}
    )
    assert response.status_code == 409
    assert f"Незавершённые рассылки по этому списку: #{mailing['id']}" in response.text


async def test_a_viewer_sees_lists_and_cannot_change_them(
    engine: AsyncEngine, list_id: int
) -> None:
    async with await signed_in_browser(engine, "viewer") as browser:
        for path in (PATH, f"{PATH}/{list_id}"):
            page = (await browser.get(path)).text
            assert "Spring, sale" in page
            assert "/mailings/new" not in page
            assert f"{PATH}/new" not in page
            assert "/remove" not in page
            assert "/add" not in page


# ---- clients and imports ---------------------------------------------------------------------


@pytest.mark.usefixtures("list_id")
async def test_clients_are_found_by_the_name_of_their_list(api: httpx.AsyncClient) -> None:
    page = await get_html(api, "/clients?list=SPRING, sale")
    assert "2 clients" in page
    assert '<input type="hidden" name="list" value="SPRING, sale">' in page
    assert "1 client" in await get_html(api, "/clients?list=Spring, sale&tag=VIP")
    page = await get_html(api, "/clients?list=Summer", status=400)
    assert form_errors(page) == {"list": "must name existing lists; not found: Summer"}


async def test_the_clients_of_a_list_are_downloaded(api: httpx.AsyncClient, list_id: int) -> None:
    page = await get_html(api, f"{PATH}/{list_id}")
    assert '<form class="actions" method="get" action="/clients.csv">' in page
    assert '<input type="hidden" name="list" value="Spring, sale">' in page
    assert 'formaction="/clients.xlsx"' in page
    query = "list=Spring, sale&separator=comma"
    workbook = load(await api.get(f"{SITE}/clients.xlsx?{query}", headers=BROWSER))
    text = (await api.get(f"{SITE}/clients.csv?{query}", headers=BROWSER)).text
    assert len(values(workbook)) == len(text.splitlines()) == 3


async def test_the_page_of_a_client_has_the_lists(api: httpx.AsyncClient, list_id: int) -> None:
    assert f'<a href="{PATH}/{list_id}"><bdi>Spring, sale</bdi></a>' in await get_html(
        api, "/clients/1"
    )
    assert "This client is on no list." in await get_html(api, "/clients/3")


async def test_the_report_of_an_import_leads_to_a_mailing_for_the_list(
    api: httpx.AsyncClient,
) -> None:
    headers = BROWSER | {"Content-Type": "text/csv"}
    url = f"{SITE}/clients/import"
    response = await api.post(
        url, params={"list": " Spring "}, content=f"phone\n{ANNA}\n", headers=headers
    )
    [list_id] = re.findall(r'href="/mailings/new\?list=(\d+)"', response.text)
    assert "1 client was put on the list Spring." in visible_text(response.text)
    assert (await api.get(f"/lists/{list_id}")).json()["clients_count"] == 1
    response = await api.post(
        url, params={"list": "x" * 101}, content=f"phone\n{ANNA}\n", headers=headers
    )
    assert response.status_code == 400
    assert "must be 1 to 100 characters" in response.text
    response = await api.post(url, params={"list": ""}, content=f"phone\n{ANNA}\n", headers=headers)
    assert "/mailings/new" not in response.text


# ---- mailings --------------------------------------------------------------------------------


async def test_the_form_for_a_list_has_that_list_and_the_exact_number_of_clients(
    api: httpx.AsyncClient, list_id: int
) -> None:
    page = await get_html(api, f"/mailings/new?list={list_id}")
    values = form_values(page)
    assert (values["audience"], values["lists"]) == ("lists", '"Spring, sale"')
    assert "2 clients" in visible_text(page)
    assert '<option value="&#34;Spring, sale&#34;">' in page
    await get_html(api, "/mailings/new?list=999", status=404)
    mailing = await save_form(
        api, "/mailings/new", NEW_FORM | {"audience": "lists", "lists": values["lists"]}
    )
    assert mailing["client_filter"] == {"lists": ["Spring, sale"]}
    assert mailing["clients_count"] == 2


@pytest.mark.usefixtures("list_id")
async def test_the_preview_counts_lists_and_names_unknown_ones(api: httpx.AsyncClient) -> None:
    form = NEW_FORM | {"audience": "lists", "lists": '"spring, sale"', "tags": "vip"}
    assert "Audience 1 client" in await preview_form(api, form)
    unknown = form | {"lists": '"spring, sale", Summer, Autumn'}
    page = await preview_form(api, unknown)
    assert "must name existing lists; not found: Summer, Autumn" in page
    response = await post_form(api, "/mailings/new", unknown | {"then": "send"})
    assert response.status_code == 400
    assert form_errors(response.text) == {
        "lists": "must name existing lists; not found: Summer, Autumn"
    }


@pytest.mark.usefixtures("list_id")
async def test_a_filter_by_lists_is_shown_in_words(api: httpx.AsyncClient) -> None:
    client_filter = {"lists": ["Spring, sale"], "tags": ["vip"]}
    mailing = await create_mailing(api, NEW | {"client_filter": client_filter})
    page = await get_text(api, f"/mailings/{mailing['id']}")
    assert "they are on the list Spring, sale" in page
    assert "the tag is vip" in page
    values = form_values(await get_html(api, f"/mailings/{mailing['id']}/edit"))
    assert values["lists"] == '"Spring, sale"'
    copied = form_values(await get_html(api, f"/mailings/new?from={mailing['id']}"))
    assert copied["lists"] == '"Spring, sale"'
    assert "they are on the list" in await get_text(api, "/audit")
