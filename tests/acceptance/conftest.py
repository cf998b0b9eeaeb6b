"""Fixtures: real mailer processes and sandbox gateways on loopback.

The acceptance tests check promises of mailer on real processes, which they may kill.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.processes import Gateways, LoopLag, Mailers, gateways, mailers


@pytest.fixture
async def start_gateway() -> AsyncIterator[Gateways]:
    """A function that starts a sandbox gateway; its arguments are faults, such as `latency=0.1`."""
    async with gateways() as start:
        yield start


@pytest.fixture
async def start_mailer(database_url: str) -> AsyncIterator[Mailers]:
    """A function that starts a mailer process on the test's database; its arguments are settings.

    At the end all counts in the database must equal the rows.
    """
    async with mailers(database_url) as start:
        yield start


@pytest.fixture
async def lag() -> AsyncIterator[LoopLag]:
    """How late this process's event loop runs; the gateways see requests late by so much."""
    lag = LoopLag()
    task = asyncio.create_task(lag.watch())
    yield lag
    task.cancel()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder that PostgreSQL's own user may enter when the tests run as root."""
    with tempfile.TemporaryDirectory(prefix="mailer-data-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
