"""Form bodies are decoded exactly, whatever their length."""

from urllib.parse import quote_plus

import httpx
import pytest
from tests.api.browser_session import BROWSER, SITE

from mailer.admin.form import MAX_FORM_BYTES, UNQUOTE_CHUNK_BYTES


async def post_form(api: httpx.AsyncClient, body: bytes) -> httpx.Response:
    """Send the form that creates a client. When it is refused, it is shown with its values."""
    headers = BROWSER | {"Content-Type": "application/x-www-form-urlencoded"}
    return await api.post(f"{SITE}/clients/new", content=body, headers=headers)


@pytest.mark.parametrize("prefix_length", range(4))
async def test_a_long_text_is_decoded_wherever_it_is_split(
    api: httpx.AsyncClient, prefix_length: int
) -> None:
    """The prefix moves the text against the chunks in which it is decoded."""
    phone = "a" * prefix_length + "Ж&=%+ " * UNQUOTE_CHUNK_BYTES
    body = f"phone={quote_plus(phone)}".encode()
    response = await post_form(api, body[: MAX_FORM_BYTES - 100])
    assert response.status_code == 400
    assert "Ж&amp;=%+ Ж&amp;=%+ " * 1_000 in response.text


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"phone=%ff", "is not a form in UTF-8"),
        (b"phone=\xff", "is not a form in UTF-8"),
        (b"%ff=1", "is not a form in UTF-8"),
        (b"a=b&" * 200, "has too many fields"),
    ],
)
async def test_a_malformed_form_is_refused(api: httpx.AsyncClient, body: bytes, error: str) -> None:
    response = await post_form(api, body)
    assert response.status_code == 400
    assert error in response.text


@pytest.mark.parametrize("body", [b"", b"&", b"=", b"phone", b"phone=%", b"phone=%4", b"%%%"])
async def test_a_form_without_required_fields_is_shown_again(
    api: httpx.AsyncClient, body: bytes
) -> None:
    response = await post_form(api, body)
    assert response.status_code == 400
    assert "is not a form" not in response.text
