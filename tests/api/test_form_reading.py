"""What a browser sends of a form is read as it was typed, however long it is."""

from urllib.parse import quote_plus

import httpx
import pytest
from tests.api.visits import BROWSER, SITE

from mailer.admin.form import PIECE


async def sent(api: httpx.AsyncClient, body: bytes) -> httpx.Response:
    headers = BROWSER | {"Content-Type": "application/x-www-form-urlencoded"}
    return await api.post(f"{SITE}/clients/new", content=body, headers=headers)


@pytest.mark.parametrize("before", range(4))
async def test_a_long_text_is_put_together_wherever_it_is_cut(
    api: httpx.AsyncClient, before: int
) -> None:
    given = "a" * before + "Ж&=%+ " * PIECE
    answer = await sent(api, f"phone={quote_plus(given)}".encode()[: 64 * 1024 - 100])
    assert answer.status_code == 400
    assert "Ж&amp;=%+ Ж&amp;=%+ " * 1_000 in answer.text


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"phone=%ff", "is not a form in UTF-8"),
        (b"phone=\xff", "is not a form in UTF-8"),
        (b"%ff=1", "is not a form in UTF-8"),
        (b"a=b&" * 200, "has too many fields"),
    ],
)
async def test_what_is_no_form_is_refused(api: httpx.AsyncClient, body: bytes, why: str) -> None:
    answer = await sent(api, body)
    assert answer.status_code == 400
    assert why in answer.text


@pytest.mark.parametrize("body", [b"", b"&", b"=", b"phone", b"phone=%", b"phone=%4", b"%%%"])
async def test_a_form_that_lacks_what_is_needed_is_shown_again(
    api: httpx.AsyncClient, body: bytes
) -> None:
    answer = await sent(api, body)
    assert answer.status_code == 400
    assert "is not a form" not in answer.text
