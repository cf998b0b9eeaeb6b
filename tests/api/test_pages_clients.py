"""The pages of clients, as far as they need no browser."""

import re
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, NEW, create
from tests.sample import begin

SITE = "http://mailer"
HTML = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
ANNA, BORIS = "79160000001", "79030000002"
HOSTILE = """"><script>alert('x')</script>"""
ESCAPED = "&#34;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"


async def add(api: httpx.AsyncClient, **given: Any) -> int:
    answer = await api.post("/clients", json=given)
    assert answer.status_code == 201
    return int(answer.json()["id"])


async def look(api: httpx.AsyncClient, path: str, status: int = 200) -> str:
    answer = await api.get(f"{SITE}{path}", headers=HTML)
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith("text/html")
    return answer.text


async def fill(
    api: httpx.AsyncClient, path: str, fields: dict[str, str] | None = None, status: int = 303
) -> httpx.Response:
    answer = await api.post(f"{SITE}{path}", data=fields, headers=HTML)
    assert answer.status_code == status, answer.text
    return answer


def phones(page: str) -> list[str]:
    """Return the phones of a list, from the top."""
    return re.findall(r'<a href="/clients/\d+">(\d+)</a>', page)


def shown(page: str) -> dict[str, str]:
    """Return what stands in the fields of a page's form, by the names that are sent."""
    main = page.partition("<footer>")[0]
    return dict(re.findall(r'<input[^>]*\bname="(\w+)"[^>]*\bvalue="([^"]*)"', main))


def error_of(page: str, field: str) -> str:
    found = re.search(rf'<p class="error" id="{field}-error">([^<]*)</p>', page)
    assert found is not None
    return found[1]


async def messages(engine: AsyncEngine) -> dict[str, int]:
    async with engine.connect() as connection:
        statement = text("SELECT status, count(*) AS number FROM message GROUP BY status")
        return {row.status: row.number for row in await connection.execute(statement)}


async def client_of(api: httpx.AsyncClient, client_id: int) -> dict[str, Any]:
    found: dict[str, Any] = (await api.get(f"/clients/{client_id}")).json()
    return found


async def test_empty_directory_leads_to_the_import_and_the_form(api: httpx.AsyncClient) -> None:
    page = await look(api, "/clients")
    assert "There are no clients yet." in page
    assert 'name="phone"' not in page


async def test_list_has_the_newest_first_and_filters_as_the_api(api: httpx.AsyncClient) -> None:
    await add(api, phone=ANNA, tag="vip", time_zone="Europe/Moscow")
    await add(api, phone=BORIS)
    assert phones(await look(api, "/clients")) == [BORIS, ANNA]
    for query in ("tag=vip", "operator_code=%20916", "time_zone=Europe/Moscow", "phone=&tag=vip"):
        page = await look(api, f"/clients?{query}")
        assert phones(page) == [ANNA]
        assert "1 client<" in page
    assert "No client is like this." in await look(api, "/clients?tag=vip&operator_code=903")


@pytest.mark.parametrize("written", ["%2B7 (903) 000-00-02", "8 903 0000002", "9030000002"])
async def test_phone_is_found_as_people_write_it(api: httpx.AsyncClient, written: str) -> None:
    await add(api, phone=ANNA)
    await add(api, phone=BORIS)
    page = await look(api, f"/clients?phone={written}")
    assert phones(page) == [BORIS]
    assert shown(page)["phone"] == written.replace("%2B", "+")


async def test_pages_lead_to_each_other_and_keep_the_filter(api: httpx.AsyncClient) -> None:
    for n in range(5):
        await add(api, phone=f"7916000000{n}", tag="a & b")
    await add(api, phone=BORIS)
    first = await look(api, "/clients?tag=a+%26+b&limit=2")
    assert "Newer" not in first
    older = re.search(r'href="([^"]*)" rel="next"', first)
    assert older is not None
    second = await look(api, older[1].replace("&amp;", "&"))
    assert phones(second) == ["79160000002", "79160000001"]
    newer = re.search(r'href="([^"]*)" rel="prev"', second)
    assert newer is not None
    assert phones(await look(api, newer[1].replace("&amp;", "&"))) == phones(first)
    assert "nothing on this page" in await look(api, "/clients?before=1")


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("phone=12", "phone", "must be 7 and ten more digits"),
        ("operator_code=91", "operator_code", "must be three digits"),
        ("tag=" + "x" * 65, "tag", "must have 1 to 64 characters"),
        ("time_zone=Moscow", "time_zone", "must be a time zone such as Europe/Moscow"),
    ],
)
async def test_wrong_filter_is_400_with_the_error_beside_its_field(
    api: httpx.AsyncClient, query: str, field: str, message: str
) -> None:
    for path in ("/clients", "/clients.csv"):
        page = await look(api, f"{path}?{query}", 400)
        assert error_of(page, field).startswith(message)
        assert shown(page)[field] == query.partition("=")[2]


@pytest.mark.parametrize(
    "query", ["limit=0", "before=1&after=2", "tag=a&tag=b", "tag=%ff", "color=red", "phone=%00"]
)
async def test_no_query_is_an_error_of_ours(api: httpx.AsyncClient, query: str) -> None:
    await look(api, f"/clients?{query}", 400)


async def test_export_gives_what_the_filter_shows(api: httpx.AsyncClient) -> None:
    await add(api, phone=ANNA, tag="vip")
    await add(api, phone=BORIS)
    page = await look(api, "/clients?phone=%2B7+916+000-00-01")
    link = re.search(r'href="(/clients.csv[^"]*)"', page)
    assert link is not None
    answer = await api.get(f"{SITE}{link[1]}", headers=HTML)
    assert answer.headers["Content-Disposition"] == 'attachment; filename="clients.csv"'
    assert answer.text == f"phone,operator_code,tag,time_zone\n{ANNA},916,vip,UTC\n"


async def test_client_is_added_with_what_blank_fields_mean(api: httpx.AsyncClient) -> None:
    given = {"phone": "+7 (916) 000-00-01", "operator_code": " ", "tag": "", "time_zone": ""}
    answer = await fill(api, "/clients/new", given)
    [added] = (await api.get("/clients")).json()["results"]
    assert answer.headers["Location"] == f"/clients/{added['id']}"
    assert [added[field] for field in given] == [ANNA, "916", None, "UTC"]


async def test_refused_client_is_shown_again_with_every_error(api: httpx.AsyncClient) -> None:
    given = {"phone": "12", "operator_code": "x", "tag": HOSTILE * 3, "time_zone": HOSTILE}
    page = (await fill(api, "/clients/new", given, 400)).text
    for field in given:
        assert error_of(page, field).startswith("must ")
    assert shown(page)["tag"] == ESCAPED * 3
    assert "<script>" not in page


async def test_taken_phone_is_409_beside_the_phone(api: httpx.AsyncClient) -> None:
    await add(api, phone=ANNA)
    boris = await add(api, phone=BORIS)
    for path in ("/clients/new", f"/clients/{boris}"):
        given = {"phone": f"+{ANNA}", "tag": "kept", "was_phone": BORIS}
        page = (await fill(api, path, given, 409)).text
        assert error_of(page, "phone") == "Another client has this phone."
        assert shown(page)["tag"] == "kept"
        assert f"/clients?phone={ANNA}" in page


async def test_only_what_was_changed_in_the_form_changes(api: httpx.AsyncClient) -> None:
    anna = await add(api, phone=ANNA, tag=" two  words ", operator_code="903")
    form = shown(await look(api, f"/clients/{anna}"))
    await api.patch(f"/clients/{anna}", json={"tag": "by another"})
    await fill(api, f"/clients/{anna}", form | {"time_zone": "Asia/Tokyo"})
    changed = await client_of(api, anna)
    assert changed["tag"] == "by another"
    assert (changed["operator_code"], changed["time_zone"]) == ("903", "Asia/Tokyo")


async def test_form_that_is_saved_as_it_was_changes_nothing(api: httpx.AsyncClient) -> None:
    anna = await add(api, phone=ANNA, tag=" two  words ")
    before = await client_of(api, anna)
    form = shown(await look(api, f"/clients/{anna}"))
    await fill(api, f"/clients/{anna}", form | {"phone": "8 916 000 00 01"})
    assert await client_of(api, anna) == before


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ({"operator_code": ""}, "916"),
        ({"phone": BORIS}, "903"),
        ({"phone": BORIS, "operator_code": ""}, "903"),
        ({"phone": BORIS, "operator_code": "925"}, "925"),
        ({"tag": "vip"}, "999"),
    ],
)
async def test_operator_code_follows_the_phone_unless_it_is_given(
    api: httpx.AsyncClient, typed: dict[str, str], code: str
) -> None:
    anna = await add(api, phone=ANNA, operator_code="999")
    form = shown(await look(api, f"/clients/{anna}"))
    await fill(api, f"/clients/{anna}", form | typed)
    assert (await client_of(api, anna))["operator_code"] == code


async def test_blank_tag_and_time_zone_are_none_and_utc(api: httpx.AsyncClient) -> None:
    anna = await add(api, phone=ANNA, tag="vip", time_zone="Asia/Tokyo")
    form = shown(await look(api, f"/clients/{anna}"))
    await fill(api, f"/clients/{anna}", form | {"tag": "", "time_zone": " "})
    changed = await client_of(api, anna)
    assert (changed["tag"], changed["time_zone"]) == (None, "UTC")


async def test_hostile_tag_is_text_everywhere(api: httpx.AsyncClient) -> None:
    anna = await add(api, phone=ANNA, tag=HOSTILE)
    for path in ("/clients", f"/clients/{anna}", f"/clients/{anna}/delete"):
        page = await look(api, path)
        assert "<script>" not in page
        assert (ESCAPED in page) == ("delete" not in path)
    assert "<script>" not in await look(api, f"/clients?tag={HOSTILE}")


async def test_question_counts_what_is_to_be_cancelled(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    anna = await add(api, phone=ANNA)
    assert "No message waits to be sent" in await look(api, f"/clients/{anna}/delete")
    for _ in range(2):
        await create(api, DUE)
        await begin(engine)
    await create(api, NEW)  # which has no messages yet
    assert "2 messages that were still to be sent" in await look(api, f"/clients/{anna}/delete")
    await fill(api, f"/clients/{anna}/delete")
    assert await messages(engine) == {"cancelled": 2}


async def test_question_comes_alone_where_a_script_asks(api: httpx.AsyncClient) -> None:
    anna = await add(api, phone=ANNA)
    headers = HTML | {"HX-Request": "true"}
    answer = await api.get(f"{SITE}/clients/{anna}/delete", headers=headers)
    assert "<html" not in answer.text
    assert '<h2 id="question">' in answer.text


async def test_deleted_client_is_gone(api: httpx.AsyncClient) -> None:
    anna = await add(api, phone=ANNA)
    answer = await fill(api, f"/clients/{anna}/delete")
    assert answer.headers["Location"] == "/clients"
    assert (await api.get(f"/clients/{anna}")).status_code == 404
    for path in (f"/clients/{anna}", f"/clients/{anna}/delete", "/clients/999", "/clients/x"):
        await look(api, path, 404)
    await fill(api, f"/clients/{anna}/delete", status=404)
    await fill(api, f"/clients/{anna}", {"phone": BORIS, "was_phone": ANNA}, 404)
