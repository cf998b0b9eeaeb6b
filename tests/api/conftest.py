"""A directory for tests of mailings."""

from collections.abc import Iterator
from functools import cache

import httpx
import pytest
from argon2 import PasswordHasher
from tests.api.calls import DIRECTORY

from mailer.access import passwords


@pytest.fixture(scope="module", autouse=True)
def cheap_passwords() -> Iterator[None]:
    """Hash passwords at the least cost there is; what one costs is tested beside the accounts."""
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_hasher", lambda: cheap)
        patch.setattr(passwords, "_nobodys", cache(passwords._nobodys.__wrapped__))  # noqa: SLF001  # made of the cost
        yield


@pytest.fixture
async def clients(api: httpx.AsyncClient) -> dict[str, int]:
    """The directory's clients: their ids by name."""
    return {
        name: (await api.post("/clients", json=given)).json()["id"]
        for name, given in DIRECTORY.items()
    }
