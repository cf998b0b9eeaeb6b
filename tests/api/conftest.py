"""A directory for tests of mailings."""

import httpx
import pytest
from tests.api.calls import DIRECTORY


@pytest.fixture(scope="module", autouse=True)
def _cheap_passwords(cheap_passwords: None) -> None:
    """In every test of this folder."""


@pytest.fixture
async def clients(api: httpx.AsyncClient) -> dict[str, int]:
    """The directory's clients: their ids by name."""
    return {
        name: (await api.post("/clients", json=given)).json()["id"]
        for name, given in DIRECTORY.items()
    }
