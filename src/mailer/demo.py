"""Everything on loopback with made-up clients and mailings under way, to look at and play with."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.gateway.faults import Faults
from mailer.gateway.sandbox import SandboxGateway
from mailer.mailing import service
from mailer.mailing.model import NewMailing
from mailer.settings import Settings

TOKEN = "demo"  # noqa: S105  # of a gateway that lives as long as the demo
FAULTS = Faults(
    latency=0.25, jitter=0.5, error_rate=0.03, malformed_rate=0.01, reject_rate=0.02, seed=1
)
CONCURRENCY = 10
"""Requests at once: at the sandbox's latency forty messages a second, slow enough to see."""

CLIENTS = 1000
ADD_CLIENTS = text("""
    INSERT INTO client (phone, operator_code, tag, time_zone)
    SELECT '7' || code || lpad(n::text, 7, '0'), code, tag, time_zone
    FROM generate_series(1, :clients) AS n
    CROSS JOIN LATERAL (SELECT
        (ARRAY['903', '912', '916', '921', '999'])[1 + n % 5] AS code,
        (ARRAY['vip', 'new', 'staff', NULL])[1 + n % 4] AS tag,
        (ARRAY['Europe/Kaliningrad', 'Europe/Moscow', 'Asia/Yekaterinburg', 'Asia/Novosibirsk',
            'Asia/Vladivostok', 'Asia/Kamchatka'])[1 + n % 6] AS time_zone) AS made_up""")


@asynccontextmanager
async def surroundings(settings: Settings) -> AsyncIterator[Settings]:
    """Run the sandbox gateway and lay out a data folder; give the settings that use them."""
    folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="mailer-demo-")
    await asyncio.to_thread(Path(folder).chmod, 0o755)  # PostgreSQL's user passes through
    try:
        async with SandboxGateway(FAULTS, token=TOKEN).run() as url:
            yield msgspec.structs.replace(
                settings,
                auth="none",
                host="127.0.0.1",
                database_url=None,
                data_dir=folder,
                gateway_url=url,
                gateway_token=TOKEN,
                gateway_concurrency=CONCURRENCY,
            )
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def fill(engine: AsyncEngine) -> None:
    """Add the clients, a mailing that is due and one that starts in half a minute."""
    async with engine.begin() as connection:
        await connection.execute(ADD_CLIENTS, {"clients": CLIENTS})
    now = datetime.now(UTC)
    await service.create(engine, _mailing(now, "Your order is ready. Come by until nine.", None))
    soon = now + timedelta(seconds=30)
    await service.create(engine, _mailing(soon, "Tonight only: everything at half price.", "vip"))


def _mailing(start: datetime, text: str, client_filter: str | None) -> NewMailing:
    return NewMailing(
        datetime_start=start,
        datetime_end=start + timedelta(hours=1),
        text=text,
        client_filter=client_filter,
    )


def greet(address: str, echo: Callable[[str], None]) -> None:
    """Say what runs, and where to look."""
    echo(f"""
mailer runs with a made-up gateway, {CLIENTS:,} made-up clients and two mailings:
one is being sent, the other starts in half a minute.

  look          {address}/
  try the API   {address}/docs
  read the API  {address}/redoc
  the mailings  curl {address}/api/v1/mailings

Ctrl-C ends it and leaves nothing behind.""")
