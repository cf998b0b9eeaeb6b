"""Fixtures for tests of the API."""

import httpx
import pytest
from tests.api.calls import CLIENTS


@pytest.fixture(scope="module", autouse=True)
def _cheap_passwords(cheap_passwords: None) -> None:
    """Hash passwords cheaply in every test of this folder."""


@pytest.fixture
async def clients(api: httpx.AsyncClient) -> dict[str, int]:
    """Create the clients of `CLIENTS`; return their ids by name."""
    return {
        name: (await api.post("/clients", json=payload)).json()["id"]
        for name, payload in CLIENTS.items()
    }
