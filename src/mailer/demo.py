"""The demo: mailer on loopback with a sandbox gateway, sample clients and sample mailings."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import DateTime, Integer, String, bindparam, text
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import COMMAND_LINE
from mailer.clock import database_clock
from mailer.gateway.faults import Faults
from mailer.gateway.sandbox import SandboxGateway
from mailer.mailing import service
from mailer.mailing.model import NewMailing
from mailer.settings import Settings

TOKEN = "demo"  # noqa: S105  # the demo's own gateway accepts it
SANDBOX_FAULTS = Faults(
    latency=0.25, jitter=0.5, error_rate=0.03, malformed_rate=0.01, reject_rate=0.02, seed=1
)
CONCURRENCY = 10
"""Concurrent requests: forty messages a second at the sandbox's latency, slow enough to watch."""

CLIENTS = 1000
INSERT_CLIENTS = text("""
    INSERT INTO client (phone, operator_code, tag, time_zone)
    SELECT '7' || code || lpad(n::text, 7, '0'), code, tag, time_zone
    FROM generate_series(1, :clients) AS n
    CROSS JOIN LATERAL (SELECT
        (ARRAY['903', '912', '916', '921', '999'])[1 + n % 5] AS code,
        (ARRAY['vip', 'new', 'staff', NULL])[1 + n % 4] AS tag,
        (ARRAY['Europe/Kaliningrad', 'Europe/Moscow', 'Asia/Yekaterinburg', 'Asia/Novosibirsk',
            'Asia/Vladivostok', 'Asia/Kamchatka'])[1 + n % 6] AS time_zone) AS made_up""")

DAY = timedelta(days=1)
# start relative to now, duration, audience, and undelivered messages in each hundred
ENDED_MAILINGS: list[dict[str, Any]] = [
    {
        "start": timedelta(hours=-20),
        "length": timedelta(hours=9),
        "text": "Our new shop opens on Friday at ten.",
        "tag": None,
        "failing": 3,
    },
    {
        "start": timedelta(hours=-6),
        "length": timedelta(hours=4),
        "text": "A gift waits for you at the counter.",
        "tag": "vip",
        "failing": 8,
    },
]
INSERT_ENDED_MAILING = text("""
    INSERT INTO mailing (datetime_start, datetime_end, text, client_filter, status, clients_count,
        audience_cursor, audience_until, created_at, updated_at)
    SELECT :start, :end, :text, to_jsonb(CAST(:tag AS text)), 'finished', count(*),
        max(id), max(id), :start, :end
    FROM client WHERE tag = :tag OR CAST(:tag AS text) IS NULL RETURNING id""").bindparams(
    bindparam("tag", type_=String()),
    *(bindparam(name, type_=DateTime(timezone=True)) for name in ("start", "end")),
)
INSERT_COUNTS = text("INSERT INTO mailing_counts (mailing_id) VALUES (:id)")
# most messages are sent soon after the start, and fewer and fewer later
INSERT_MESSAGES = text("""
    INSERT INTO message (mailing_id, client_id, operator_code, time_zone, due_at, created_at,
        sent_at, updated_at, attempts, status, reason)
    SELECT :id, client.id, operator_code, time_zone, :start, :start,
        CASE WHEN lot >= :failing THEN at END, at, 1,
        CASE WHEN lot < :failing THEN 'undelivered' ELSE 'delivered' END,
        CASE WHEN lot < :failing THEN 'rejected_400' END
    FROM client CROSS JOIN LATERAL (SELECT client.id * 7919 % 100 AS lot,
        :start + power(client.id::float8 / :clients, 1.6) * 0.9 * (:end - :start) AS at) AS drawn
    WHERE tag = :tag OR CAST(:tag AS text) IS NULL""").bindparams(
    bindparam("tag", type_=String()),
    bindparam("failing", type_=Integer()),
    bindparam("clients", CLIENTS, type_=Integer()),
    *(bindparam(name, type_=DateTime(timezone=True)) for name in ("start", "end")),
)

SETTLE_MAILING = text(
    "UPDATE mailing SET is_closed = true, is_settled = true WHERE id = :id"
)  # counts its outcomes


@asynccontextmanager
async def demo_environment(settings: Settings) -> AsyncIterator[Settings]:
    """Run the sandbox gateway and create a data folder; yield the settings that use them."""
    folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="mailer-demo-")
    await asyncio.to_thread(Path(folder).chmod, 0o755)  # PostgreSQL's user must enter it
    try:
        async with SandboxGateway(SANDBOX_FAULTS, token=TOKEN).run() as url:
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


async def create_demo_data(engine: AsyncEngine) -> None:
    """Create the clients, and mailings that are ended, paused, scheduled, due now and due soon."""
    now = database_clock.now()
    async with engine.begin() as connection:
        await connection.execute(INSERT_CLIENTS, {"clients": CLIENTS})
        for sample in ENDED_MAILINGS:
            start = now + sample["start"]
            values = sample | {"start": start, "end": start + sample["length"]}
            mailing_id = (await connection.execute(INSERT_ENDED_MAILING, values)).scalar_one()
            await connection.execute(INSERT_COUNTS, {"id": mailing_id})
            await connection.execute(INSERT_MESSAGES, values | {"id": mailing_id})
            await connection.execute(SETTLE_MAILING, {"id": mailing_id})
    paused = _new_mailing(now, "The shop is closed on Monday.", "new, staff", timedelta(days=1))
    paused_id = (await service.create(engine, paused, COMMAND_LINE)).id
    await service.pause(engine, paused_id, COMMAND_LINE)
    tomorrow = now.replace(hour=6, minute=0, second=0, microsecond=0) + timedelta(days=1)
    later = _new_mailing(tomorrow, "Your bonus points are valid until Sunday.", None, DAY)
    later = msgspec.structs.replace(
        later, send_interval_time_start="10:00", send_interval_time_end="20:00"
    )
    await service.create(engine, later, COMMAND_LINE)
    await service.create(
        engine, _new_mailing(now, "Your order is ready. Come by until nine.", None), COMMAND_LINE
    )
    soon = now + timedelta(seconds=30)
    await service.create(
        engine, _new_mailing(soon, "Tonight only: everything at half price.", "vip"), COMMAND_LINE
    )


def _new_mailing(
    start: datetime, text: str, client_filter: str | None, length: timedelta = timedelta(hours=1)
) -> NewMailing:
    return NewMailing(
        datetime_start=start,
        datetime_end=start + length,
        text=text,
        client_filter=client_filter,
    )


def print_greeting(address: str, echo: Callable[[str], None]) -> None:
    """Print what runs and where to open it."""
    echo(f"""
mailer runs with a sandbox gateway, {CLIENTS:,} sample clients and sample mailings:
one is being sent, one starts in half a minute, others have ended, are paused or start tomorrow.

  pages          {address}/
  try the API    {address}/docs
  API reference  {address}/redoc
  mailings       curl {address}/api/v1/mailings

Ctrl-C stops the demo and deletes its data.""")
