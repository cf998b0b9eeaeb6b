"""A real PostgreSQL for every test that needs one, and the application on it."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from litestar import Litestar
from litestar.testing import AsyncTestClient
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.app import create_app
from mailer.db.embedded import embedded_postgres
from mailer.db.engine import connect, create_engine
from mailer.db.migrate import migrate

TEMPLATE = "mailer_template"
_numbers = count(1)


@pytest.fixture(scope="session")
async def server_url() -> AsyncIterator[str]:
    """A PostgreSQL server for the session, with a migrated database to copy."""
    folder = Path(tempfile.mkdtemp(prefix="mailer-tests-"))
    folder.chmod(0o755)  # PostgreSQL's user passes through when the tests run as root
    try:
        async with embedded_postgres(folder) as url:
            await _create_database(url, TEMPLATE)
            engine = create_engine(_on(url, TEMPLATE))
            await migrate(engine)
            await engine.dispose()
            yield url
    finally:
        shutil.rmtree(folder)


@pytest.fixture
async def database_url(server_url: str) -> AsyncIterator[str]:
    """A database of the newest schema with nothing in it."""
    name = f"mailer_{next(_numbers)}"
    await _create_database(server_url, name, TEMPLATE)
    yield _on(server_url, name)
    connection = await connect(server_url)
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def api(engine: AsyncEngine) -> AsyncIterator[AsyncTestClient[Litestar]]:
    """The application in this process, without a dispatcher."""
    async with AsyncTestClient(create_app(engine)) as client:
        yield client


async def _create_database(server_url: str, name: str, template: str = "template0") -> None:
    connection = await connect(server_url)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    await connection.close()


def _on(server_url: str, database: str) -> str:
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{database}"))
