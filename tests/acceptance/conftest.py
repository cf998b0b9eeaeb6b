"""Real processes and gateways on loopback."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.processes import Gateways, LoopLag, Mailers, gateways, mailers


@pytest.fixture
async def start_gateway() -> AsyncIterator[Gateways]:
    """Starts sandbox gateways."""
    async with gateways() as start:
        yield start


@pytest.fixture
async def start_mailer(database_url: str) -> AsyncIterator[Mailers]:
    """Starts mailer processes on the test's database, whose ledgers must add up at the end."""
    async with mailers(database_url) as start:
        yield start


@pytest.fixture
async def lag() -> AsyncIterator[LoopLag]:
    """How late this process, in which the gateways are, has seen what came."""
    lag = LoopLag()
    watching = asyncio.create_task(lag.watch())
    yield lag
    watching.cancel()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder that PostgreSQL's user can reach when the tests run as root."""
    with tempfile.TemporaryDirectory(prefix="mailer-data-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
