"""Pages of replies: list with filters and search, one reply, its answers, and the badge."""

import html
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.browser_session import (
    BROWSER,
    ESCAPED,
    HOST_IN_COOKIES,
    HOSTILE,
    SITE,
    get_page,
    signed_in_browser,
)
from tests.asgi_client import inside
from tests.factories import (
    OPEN,
    UnusedGateway,
    add_clients,
    add_due_messages,
    channel_of,
    do,
    execute,
    rows,
    value,
)

from mailer.app import create_app
from mailer.gateway.callback import Reply
from mailer.gateway.channel import Channels
from mailer.reply import store
from mailer.reply.rules import ReplyRules
from mailer.roles import Role
from mailer.settings import Settings

RULES = ReplyRules.of(Settings())
STRANGER = "79990001234"


@pytest.fixture
async def api(engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """An application with the gateway `main`."""
    channels = Channels([channel_of(UnusedGateway(), Settings(), name="main")])
    app = create_app(engine, channels, settings=OPEN)
    async with httpx.AsyncClient(transport=inside(app), base_url=f"{SITE}/api/v1") as client:
        yield client


async def add(
    engine: AsyncEngine, *texts: str, phone: str = STRANGER, gateway: str = "main"
) -> None:
    """Add replies of one phone."""
    replies = [Reply(phone, text) for text in texts]
    now = datetime.now(UTC)
    await do(engine, lambda db: store.add_replies(db, gateway, replies, now, RULES))


async def post(
    api: httpx.AsyncClient, path: str, form: dict[str, str] | None = None
) -> httpx.Response:
    """Send a form."""
    return await api.post(
        f"{SITE}{path}", headers=BROWSER, data=form or {"return_path": "/replies"}
    )


def listed(page: str) -> list[int]:
    """Return the ids of the replies in a list, in its order."""
    return [int(reply_id) for reply_id in re.findall(r'<tr id="reply-(\d+)"', page)]


def badge(page: str) -> str:
    """Return the number of unread replies in the navigation; "" if it is hidden."""
    match = re.search(r'<span id="unread-replies"[^>]*>(.*?)</span>([^<]*)</span>', page)
    assert match is not None
    return "" if " hidden>" in match[0] else match[2].strip()


# ---- the list -------------------------------------------------------------------------------


async def test_without_replies_the_list_says_so(api: httpx.AsyncClient) -> None:
    page = await get_page(api, "/replies")
    assert "There are no replies yet." in page
    assert badge(page) == ""


async def test_unread_replies_come_first_page_by_page(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add(engine, *(f"Reply {n}" for n in range(1, 7)))
    await execute(engine, "UPDATE reply SET read_at = now() WHERE id IN (2, 5, 6)")
    page = await get_page(api, "/replies?limit=2")
    order = listed(page)
    newer = None
    while older := re.search(r'href="(/replies\?[^"]*before=\d+[^"]*)"', page):
        page = await get_page(api, html.unescape(older[1]))
        order += listed(page)
        newer = re.search(r'href="(/replies\?[^"]*after=\d+[^"]*)"', page)
    assert order == [4, 3, 1, 6, 5, 2]
    assert newer is not None
    assert listed(await get_page(api, html.unescape(newer[1]))) == [1, 6]


async def test_the_badge_shows_the_number_of_unread_replies_on_all_pages(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add(engine, *(f"Reply {n}" for n in range(3)))
    for path in ("/", "/clients", "/replies", "/replies/1"):
        assert badge(await get_page(api, path)) == "3"
    assert (await post(api, "/replies/1/read")).status_code == 303
    assert badge(await get_page(api, "/")) == "2"
    assert (await post(api, "/replies/1/unread")).headers["Location"] == "/replies"
    assert badge(await get_page(api, "/")) == "3"
    await add(engine, *(f"Reply {n}" for n in range(100)))
    assert badge(await get_page(api, "/")) == "99+"


async def test_a_search_finds_beginnings_of_words_and_phones(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add(engine, "When do you OPEN?", "Откройте раньше")
    await add(engine, "I open at nine", phone="79161234567")
    for search, ids in (
        ("open", [3, 1]),
        ("ope whe", [1]),
        ("откр", [2]),
        ("8 (916) 123-45-67", [3]),
        ("+79161234567", [3]),
        ("7916", [3]),
        ("916", [3]),
        ("4567", [3]),
        ("45-67", [3]),
        ("34567", [3]),
        ("123 45 67", [3]),
        ("1234", [2, 1]),
        ("345", []),
        ("open 1234", [1]),
        ("closed", []),
        ("' & | ! :* (", []),
    ):
        page = await get_page(api, f"/replies?{httpx.QueryParams(search=search)}")
        assert listed(page) == ids, search
    await post(api, "/replies/1/read")
    assert listed(await get_page(api, "/replies?search=open&unread=true")) == [3]
    assert listed(await get_page(api, "/replies?search=open&unread=false")) == [1]


async def test_a_search_is_read_page_by_page(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await add(engine, *("yes" for _ in range(5)), "no", *("yes" for _ in range(2)))
    page, order = await get_page(api, "/replies?search=yes&limit=3"), list[int]()
    while True:
        order += listed(page)
        older = re.search(r'href="(/replies\?[^"]*before=\d+[^"]*)"', page)
        if older is None:
            break
        page = await get_page(api, html.unescape(older[1]))
    assert order == [8, 7, 5, 4, 3, 2, 1]
    newer = re.search(r'href="(/replies\?[^"]*after=\d+[^"]*)"', page)
    assert newer is not None
    assert listed(await get_page(api, html.unescape(newer[1]))) == [4, 3, 2]


@pytest.mark.parametrize("query", ["unread=x", "limit=0", f"search={'x' * 201}", "client_id=x"])
async def test_a_wrong_filter_is_shown(api: httpx.AsyncClient, query: str) -> None:
    page = await get_page(api, f"/replies?{query}", 400)
    assert 'role="alert"' in page


async def test_replies_are_shown_with_their_client_and_on_the_pages_of_client_and_mailing(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await execute(
        engine, "UPDATE message SET status = 'delivered', sent_at = now(), gateway = 'main'"
    )
    [client] = await rows(engine, "SELECT id, phone FROM client")
    await add(engine, "Thank you very much", phone=client["phone"])
    await add(engine, "Who is this?")
    page = await get_page(api, "/replies")
    assert f'<a href="/clients/{client["id"]}">{client["phone"]}</a>' in page
    assert f'<a href="/mailings/{mailing_id}">#{mailing_id}</a>' in page
    assert f'{STRANGER} <span class="faint">not a client</span>' in page
    for path, more in (
        (f"/clients/{client['id']}", f"client_id={client['id']}"),
        (f"/mailings/{mailing_id}", f"mailing_id={mailing_id}"),
    ):
        shown = await get_page(api, path)
        assert "Thank you very much" in shown
        assert "Who is this?" not in shown
        assert f'href="/replies?{more}"' in shown
        assert listed(await get_page(api, f"/replies?{more}")) == [1]
    detail = await get_page(api, "/replies/1")
    assert f'href="/mailings/{mailing_id}"' in detail


@pytest.mark.parametrize("text", ["", " \n "])
async def test_a_reply_without_visible_text_has_a_link_that_says_so(
    api: httpx.AsyncClient, engine: AsyncEngine, text: str
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    await execute(
        engine, "UPDATE message SET status = 'delivered', sent_at = now(), gateway = 'main'"
    )
    [client] = await rows(engine, "SELECT phone FROM client")
    await add(engine, text, phone=client["phone"])
    for path in ("/replies", f"/mailings/{mailing_id}"):
        assert '<a href="/replies/1">no text</a>' in await get_page(api, path)
    assert "The reply has no text." in await get_page(api, "/replies/1")


# ---- one reply ------------------------------------------------------------------------------


async def test_hostile_texts_are_shown_as_text(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await add(engine, HOSTILE, phone=HOSTILE)
    for path in ("/replies", "/replies/1"):
        page = await get_page(api, path)
        assert ESCAPED in page
        assert HOSTILE not in page


async def test_an_answer_is_created_once_and_shown(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await add(engine, "When do you open?")
    page = await get_page(api, "/replies/1")
    [action] = re.findall(r'action="([^"]*once=[0-9a-f]{32})"', page)
    for _ in range(2):
        response = await post(api, action, {"text": "At nine."})
        assert (response.status_code, response.headers["Location"]) == (303, "/replies/1")
    assert await value(engine, "SELECT count(*) FROM answer") == 1
    for status, text in (
        ("waiting", "It is sent as soon as the gateway accepts messages"),
        ("unknown", "It is not sent again."),
        ("failed", "the gateway rejected it with 400"),
        ("accepted", "accepted"),
    ):
        reason = "'rejected_400'" if status == "failed" else "NULL"
        await execute(engine, f"UPDATE answer SET status = '{status}', reason = {reason}")  # noqa: S608  # values of the test
        page = await get_page(api, "/replies/1")
        assert "At nine." in page
        assert text in page


@pytest.mark.parametrize("text", ["", "   ", "x" * 1_601])
async def test_a_wrong_answer_is_shown_again_with_its_error(
    api: httpx.AsyncClient, engine: AsyncEngine, text: str
) -> None:
    await add(engine, "Hello")
    response = await post(api, f"/replies/1/answer?once={'0' * 32}", {"text": text})
    assert response.status_code == 400
    assert 'aria-invalid="true"' in response.text
    assert await value(engine, "SELECT count(*) FROM answer") == 0


async def test_a_reply_that_cannot_be_answered_says_why(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    [client_id] = await add_clients(engine, 1)
    await add(engine, "A secret", phone=await value(engine, "SELECT phone FROM client"))
    await add(engine, "Hello", gateway="removed")
    await api.delete(f"/clients/{client_id}")
    erased, removed = await get_page(api, "/replies/1"), await get_page(api, "/replies/2")
    assert "the client was deleted" in erased
    assert "A secret" not in erased
    assert "the gateway removed is not configured any more" in removed
    assert "<textarea" not in erased + removed
    response = await post(api, "/replies/2/answer", {"text": "Hi"})
    assert response.status_code == 409
    assert "The gateway of the reply is not configured any more." in response.text


async def test_the_size_of_an_answer_is_shown_while_it_is_written(api: httpx.AsyncClient) -> None:
    for text, parts in (("", "0 parts"), ("x" * 160, "1 part"), ("я" * 71, "2 parts")):
        response = await post(api, "/replies/preview", {"text": text})
        assert parts in " ".join(response.text.split())


@pytest.mark.parametrize("role", ["viewer", "operator"])
async def test_viewers_read_and_only_writers_answer(engine: AsyncEngine, role: Role) -> None:
    await add(engine, "Hello")
    browser = await signed_in_browser(engine, role)
    assert HOST_IN_COOKIES
    is_writer = role == "operator"
    for path in ("/replies", "/replies/1"):
        page = (await browser.get(path)).text
        assert "Hello" in page
        assert ("Mark as read" in page) is is_writer
    for path in ("/replies/1/read", "/replies/1/unread", "/replies/1/answer", "/replies/preview"):
        response = await browser.post(path, data={"text": "Hi"})
        assert (response.status_code == 403) is not is_writer, path


async def test_unknown_replies_are_not_found(api: httpx.AsyncClient) -> None:
    await get_page(api, "/replies/1", 404)
    assert (await post(api, "/replies/1/read")).status_code == 404
    assert (await post(api, "/replies/1/answer", {"text": "Hi"})).status_code == 404
