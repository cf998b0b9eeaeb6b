"""An id in a path has one valid spelling: ASCII digits, without a sign and leading zeros."""

import httpx
import pytest
from litestar import Litestar, get
from litestar.params import FromPath
from tests.asgi_client import inside

from mailer.web.routing import PathIds


@get("/lists/{list_id:int}/entries/{entry_id:int}")
async def show_entry(list_id: FromPath[int], entry_id: FromPath[int]) -> list[int]:
    return [list_id, entry_id]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/lists/7/entries/8", 200),
        ("/lists/7/entries/7", 200),
        ("/lists/7/entries/7/", 200),
        ("/lists/7/entries/+7", 404),
        ("/lists/07/entries/7", 404),
        ("/lists/8/entries/007", 404),
        ("/lists/7/entries/0_7", 404),
        ("/lists/\u0667/entries/7", 404),  # an Arabic digit
    ],
)
async def test_id_in_another_spelling_is_not_found(path: str, status: int) -> None:
    app = Litestar([show_entry], middleware=[PathIds()], openapi_config=None)
    async with httpx.AsyncClient(transport=inside(app), base_url="http://mailer") as client:
        assert (await client.get(path)).status_code == status
