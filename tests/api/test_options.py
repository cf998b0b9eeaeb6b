"""A request with the method OPTIONS is answered with the methods that its path allows."""

import httpx
import pytest


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/clients", {"GET", "POST"}),
        ("/clients/", {"GET", "POST"}),
        ("/clients/1", {"GET", "PATCH", "DELETE"}),
        ("/mailings/1", {"GET", "PATCH", "DELETE"}),
        ("/mailings/1/pause", {"POST"}),
        ("/statistics", {"GET"}),
    ],
)
async def test_options_returns_every_method_of_a_path(
    api: httpx.AsyncClient, path: str, allowed: set[str]
) -> None:
    answer = await api.options(path)
    assert answer.status_code == 204
    assert answer.content == b""
    assert set(answer.headers["allow"].split(", ")) == allowed | {"OPTIONS"}
