"""The pages of clients, without a browser."""

import re
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import BROWSER, SITE
from tests.api.calls import DUE, NEW, create_mailing
from tests.factories import start_and_enqueue

ANNA, BORIS = "79160000001", "79030000002"
HOSTILE = """"><script>alert('x')</script>"""
ESCAPED = "&#34;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"


async def create_client(api: httpx.AsyncClient, **values: Any) -> int:
    """Create a client through the API; return its id."""
    response = await api.post("/clients", json=values)
    assert response.status_code == 201
    return int(response.json()["id"])


async def get_page(api: httpx.AsyncClient, path: str, status: int = 200) -> str:
    """Return the HTML of a page."""
    response = await api.get(f"{SITE}{path}", headers=BROWSER)
    assert response.status_code == status
    assert response.headers["Content-Type"].startswith("text/html")
    return response.text


async def post_form(
    api: httpx.AsyncClient, path: str, fields: dict[str, str] | None = None, status: int = 303
) -> httpx.Response:
    """Submit a form."""
    response = await api.post(f"{SITE}{path}", data=fields, headers=BROWSER)
    assert response.status_code == status, response.text
    return response


def listed_phones(page: str) -> list[str]:
    """Return the phones of a list from top to bottom."""
    return re.findall(r'<a href="/clients/\d+">(\d+)</a>', page)


def form_values(page: str) -> dict[str, str]:
    """Return the values of all fields of a page by name, without those in the footer."""
    main = page.partition("<footer>")[0]
    return dict(re.findall(r'<input[^>]*\bname="(\w+)"[^>]*\bvalue="([^"]*)"', main))


def error_of(page: str, field: str) -> str:
    """Return the error beside a field."""
    match = re.search(rf'<p class="error" id="{field}-error">([^<]*)</p>', page)
    assert match is not None
    return match[1]


async def count_messages_by_status(engine: AsyncEngine) -> dict[str, int]:
    async with engine.connect() as connection:
        statement = text("SELECT status, count(*) AS messages FROM message GROUP BY status")
        return {row.status: row.messages for row in await connection.execute(statement)}


async def get_client(api: httpx.AsyncClient, client_id: int) -> dict[str, Any]:
    """Return a client as the API returns it."""
    client: dict[str, Any] = (await api.get(f"/clients/{client_id}")).json()
    return client


async def test_without_clients_the_list_says_so_and_has_no_filter(api: httpx.AsyncClient) -> None:
    page = await get_page(api, "/clients")
    assert "There are no clients yet." in page
    assert 'name="phone"' not in page


async def test_the_list_is_newest_first_and_filters_like_the_api(api: httpx.AsyncClient) -> None:
    await create_client(api, phone=ANNA, tag="vip", time_zone="Europe/Moscow")
    await create_client(api, phone=BORIS)
    assert listed_phones(await get_page(api, "/clients")) == [BORIS, ANNA]
    for query in ("tag=vip", "operator_code=%20916", "time_zone=Europe/Moscow", "phone=&tag=vip"):
        page = await get_page(api, f"/clients?{query}")
        assert listed_phones(page) == [ANNA]
        assert "1 client<" in page
    assert "No clients match." in await get_page(api, "/clients?tag=vip&operator_code=903")


@pytest.mark.parametrize("notation", ["%2B7 (903) 000-00-02", "8 903 0000002", "9030000002"])
async def test_a_phone_is_found_in_every_usual_notation(
    api: httpx.AsyncClient, notation: str
) -> None:
    await create_client(api, phone=ANNA)
    await create_client(api, phone=BORIS)
    page = await get_page(api, f"/clients?phone={notation}")
    assert listed_phones(page) == [BORIS]
    filter_form = page.partition('action="/clients.csv"')[0]
    assert form_values(filter_form)["phone"] == notation.replace("%2B", "+")


@pytest.mark.parametrize("digits", ["0002", "00 02", "000-00-02", "0300-00002", "9030000002"])
async def test_a_client_is_found_by_the_last_digits_of_the_phone(
    api: httpx.AsyncClient, digits: str
) -> None:
    await create_client(api, phone=ANNA)
    await create_client(api, phone=BORIS, tag="vip")
    await create_client(api, phone="79000002000")  # the digits are not the last ones
    assert listed_phones(await get_page(api, f"/clients?phone={digits}")) == [BORIS]
    assert listed_phones(await get_page(api, f"/clients?phone={digits}&tag=vip")) == [BORIS]
    assert "No clients match." in await get_page(api, f"/clients?phone={digits}&tag=new")
    exported = (await api.get(f"{SITE}/clients.csv?phone={digits}")).content.decode("utf-8-sig")
    assert [line.split(",")[0] for line in exported.splitlines()] == ["phone", BORIS]


async def test_the_api_finds_a_client_by_the_whole_phone_alone(api: httpx.AsyncClient) -> None:
    await create_client(api, phone=ANNA)
    assert (await api.get(f"/clients?phone={ANNA}")).json()["count"] == 1
    assert (await api.get("/clients?phone=0001")).status_code == 400


async def test_links_between_pages_keep_the_filter(api: httpx.AsyncClient) -> None:
    for n in range(5):
        await create_client(api, phone=f"7916000000{n}", tag="a & b")
    await create_client(api, phone=BORIS)
    first_page = await get_page(api, "/clients?tag=a+%26+b&limit=2")
    assert "Newer" not in first_page
    older_link = re.search(r'href="([^"]*)" rel="next"', first_page)
    assert older_link is not None
    second_page = await get_page(api, older_link[1].replace("&amp;", "&"))
    assert listed_phones(second_page) == ["79160000002", "79160000001"]
    newer_link = re.search(r'href="([^"]*)" rel="prev"', second_page)
    assert newer_link is not None
    page_before = await get_page(api, newer_link[1].replace("&amp;", "&"))
    assert listed_phones(page_before) == listed_phones(first_page)
    assert "This page of the list is empty" in await get_page(api, "/clients?before=1")


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("phone=12", "phone", "must be a phone, such as 79161234567, or its last"),
        ("operator_code=91", "operator_code", "must be three digits"),
        ("tag=" + "x" * 65, "tag", "at most 64 characters"),
        ("time_zone=Moscow", "time_zone", "must be a time zone such as Europe/Moscow"),
    ],
)
async def test_an_invalid_filter_is_400_with_the_error_beside_its_field(
    api: httpx.AsyncClient, query: str, field: str, message: str
) -> None:
    for path in ("/clients", "/clients.csv"):
        page = await get_page(api, f"{path}?{query}", 400)
        assert error_of(page, field).startswith(message)
        assert form_values(page)[field] == query.partition("=")[2]


@pytest.mark.parametrize(
    "query", ["limit=0", "before=1&after=2", "tag=a&tag=b", "tag=%ff", "color=red", "phone=%00"]
)
async def test_an_invalid_query_is_never_a_server_error(api: httpx.AsyncClient, query: str) -> None:
    await get_page(api, f"/clients?{query}", 400)


async def test_the_export_contains_the_filtered_clients(api: httpx.AsyncClient) -> None:
    await create_client(api, phone=ANNA, tag="vip")
    await create_client(api, phone=BORIS)
    page = await get_page(api, "/clients?phone=%2B7+916+000-00-01")
    assert f'<input type="hidden" name="phone" value="{ANNA}">' in page
    response = await api.get(f"{SITE}/clients.csv?phone={ANNA}&separator=comma", headers=BROWSER)
    assert response.headers["Content-Disposition"] == 'attachment; filename="clients.csv"'
    assert response.text == f"\ufeffphone,operator_code,tag,time_zone\n{ANNA},916,vip,UTC\n"


async def test_the_export_is_one_that_excel_opens_in_the_language_of_the_page(
    api: httpx.AsyncClient,
) -> None:
    await create_client(api, phone=ANNA, tag="Лёд")
    url, russian = f"{SITE}/clients.csv", BROWSER | {"Accept-Language": "ru"}
    exported = await api.get(url, headers=russian)
    assert exported.text == f"\ufeffphone;operator_code;tag;time_zone\n{ANNA};916;Лёд;UTC\n"
    chosen = await api.get(f"{url}?separator=comma", headers=russian)
    assert chosen.text == exported.text.replace(";", ",")
    wrong = await api.get(f"{url}?separator=tab", headers=BROWSER)
    assert wrong.status_code == 400
    headers = {"Content-Type": "text/csv"}
    imported = await api.post("/clients/import", content=exported.content, headers=headers)
    assert imported.json()["unchanged"] == 1
    of_api = await api.get("/clients", headers={"Accept": "text/csv"})
    assert of_api.text.startswith("phone,operator_code")


async def test_a_client_is_created_with_defaults_for_blank_fields(api: httpx.AsyncClient) -> None:
    form = {"phone": "+7 (916) 000-00-01", "operator_code": " ", "tag": "", "time_zone": ""}
    response = await post_form(api, "/clients/new", form)
    [created] = (await api.get("/clients")).json()["results"]
    assert response.headers["Location"] == f"/clients/{created['id']}"
    assert [created[field] for field in form] == [ANNA, "916", None, "UTC"]


async def test_a_refused_form_is_shown_again_with_every_error(api: httpx.AsyncClient) -> None:
    form = {"phone": "12", "operator_code": "x", "tag": HOSTILE * 3, "time_zone": HOSTILE}
    page = (await post_form(api, "/clients/new", form, 400)).text
    for field in form:
        assert error_of(page, field)
    assert form_values(page)["tag"] == ESCAPED * 3
    assert "<script>" not in page


async def test_a_used_phone_is_409_with_the_error_beside_the_phone(api: httpx.AsyncClient) -> None:
    await create_client(api, phone=ANNA)
    boris = await create_client(api, phone=BORIS)
    for path in ("/clients/new", f"/clients/{boris}"):
        form = {"phone": f"+{ANNA}", "tag": "kept", "was_phone": BORIS}
        page = (await post_form(api, path, form, 409)).text
        assert error_of(page, "phone") == "Another client has this phone."
        assert form_values(page)["tag"] == "kept"
        assert f"/clients?phone={ANNA}" in page


async def test_only_fields_that_the_user_changed_are_saved(api: httpx.AsyncClient) -> None:
    anna = await create_client(api, phone=ANNA, tag=" two  words ", operator_code="903")
    form = form_values(await get_page(api, f"/clients/{anna}"))
    await api.patch(f"/clients/{anna}", json={"tag": "by another user"})
    await post_form(api, f"/clients/{anna}", form | {"time_zone": "Asia/Tokyo"})
    changed = await get_client(api, anna)
    assert changed["tag"] == "by another user"
    assert (changed["operator_code"], changed["time_zone"]) == ("903", "Asia/Tokyo")


async def test_saving_an_unchanged_form_changes_nothing(api: httpx.AsyncClient) -> None:
    anna = await create_client(api, phone=ANNA, tag=" two  words ")
    before = await get_client(api, anna)
    form = form_values(await get_page(api, f"/clients/{anna}"))
    await post_form(api, f"/clients/{anna}", form | {"phone": "8 916 000 00 01"})
    assert await get_client(api, anna) == before


@pytest.mark.parametrize(
    ("typed", "code_after"),
    [
        ({"operator_code": ""}, "916"),
        ({"phone": BORIS}, "903"),
        ({"phone": BORIS, "operator_code": ""}, "903"),
        ({"phone": BORIS, "operator_code": "925"}, "925"),
        ({"tag": "vip"}, "999"),  # unchanged
    ],
)
async def test_a_changed_phone_or_a_blank_code_sets_the_code_of_the_phone(
    api: httpx.AsyncClient, typed: dict[str, str], code_after: str
) -> None:
    anna = await create_client(api, phone=ANNA, operator_code="999")
    form = form_values(await get_page(api, f"/clients/{anna}"))
    await post_form(api, f"/clients/{anna}", form | typed)
    assert (await get_client(api, anna))["operator_code"] == code_after


async def test_a_blank_tag_is_none_and_a_blank_time_zone_is_utc(api: httpx.AsyncClient) -> None:
    anna = await create_client(api, phone=ANNA, tag="vip", time_zone="Asia/Tokyo")
    form = form_values(await get_page(api, f"/clients/{anna}"))
    await post_form(api, f"/clients/{anna}", form | {"tag": "", "time_zone": " "})
    changed = await get_client(api, anna)
    assert (changed["tag"], changed["time_zone"]) == (None, "UTC")


async def test_a_hostile_tag_is_escaped_on_every_page(api: httpx.AsyncClient) -> None:
    anna = await create_client(api, phone=ANNA, tag=HOSTILE)
    for path in ("/clients", f"/clients/{anna}", f"/clients/{anna}/delete"):
        page = await get_page(api, path)
        assert "<script>" not in page
        shows_tag = not path.endswith("/delete")
        assert (ESCAPED in page) == shows_tag
    assert "<script>" not in await get_page(api, f"/clients?tag={HOSTILE}")


async def test_the_confirmation_counts_the_messages_to_be_cancelled(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    anna = await create_client(api, phone=ANNA)
    assert "No messages are waiting to be sent" in await get_page(api, f"/clients/{anna}/delete")

    for _ in range(2):
        await create_mailing(api, DUE)
        await start_and_enqueue(engine)
    await create_mailing(api, NEW)  # without messages yet
    assert "2 unsent messages" in await get_page(api, f"/clients/{anna}/delete")
    await post_form(api, f"/clients/{anna}/delete")
    assert await count_messages_by_status(engine) == {"cancelled": 2}


async def test_the_confirmation_for_a_script_is_a_fragment(api: httpx.AsyncClient) -> None:
    anna = await create_client(api, phone=ANNA)
    headers = BROWSER | {"HX-Request": "true"}
    response = await api.get(f"{SITE}/clients/{anna}/delete", headers=headers)
    assert "<html" not in response.text
    assert '<h2 id="question">' in response.text


async def test_pages_of_a_deleted_client_are_404(api: httpx.AsyncClient) -> None:
    anna = await create_client(api, phone=ANNA)
    response = await post_form(api, f"/clients/{anna}/delete")
    assert response.headers["Location"] == "/clients"
    assert (await api.get(f"/clients/{anna}")).status_code == 404
    for path in (f"/clients/{anna}", f"/clients/{anna}/delete", "/clients/999", "/clients/x"):
        await get_page(api, path, 404)
    await post_form(api, f"/clients/{anna}/delete", status=404)
    await post_form(api, f"/clients/{anna}", {"phone": BORIS, "was_phone": ANNA}, 404)
