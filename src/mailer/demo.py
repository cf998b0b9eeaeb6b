"""The demo: mailer on loopback with two sandbox gateways, sample clients and sample mailings.

The first gateway sends receipts and replies of clients. The command `mailer demo` starts it.
"""

import asyncio
import secrets
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import COMMAND_LINE
from mailer.client.lists import service as lists
from mailer.client.lists.model import ListMembers, NewList
from mailer.clock import database_clock
from mailer.db.engine import asyncpg_connection
from mailer.gateway.faults import Faults
from mailer.gateway.sandbox import CallOptions, SandboxGateway
from mailer.mailing import service
from mailer.mailing.client_filter import AudienceLists, ClientFilter
from mailer.mailing.model import NewMailing
from mailer.sample_data import (
    TEXT,
    SampleMailing,
    SampleResult,
    create_clients,
    create_mailings,
    create_messages,
    set_fields,
    settle_mailings,
)
from mailer.settings import Settings

SANDBOX_FAULTS = Faults(
    latency=0.25, jitter=0.5, error_rate=0.03, malformed_rate=0.01, reject_rate=0.02, seed=1
)
RECEIPT_DELAY, RECEIPT_WAIT = 4.0, 300.0
"""Mean seconds until a receipt, and how many mailer waits for one."""
MAIN, BACKUP = "telnyx", "kannel"
"""The kinds of the two gateways. The second one is used while the first one is out."""
CONCURRENCY = 5
"""Concurrent requests to each gateway. With its latency of a quarter of a second, they send twenty
messages a second: slow enough to watch."""
MAIN_KEYS = f'sender = "Acme"\nconcurrency = {CONCURRENCY}\norder = 1\nprice = 3.2\n'
BACKUP_KEYS = f'sender = "Acme"\nconcurrency = {CONCURRENCY}\norder = 2\nprice = 4.5\n'
UNTIL_OUTAGE, OUTAGE_SECONDS = 20.0, 15.0
"""The first gateway alternately has credit and no credit, for so many seconds."""
BREAKER_RESET = 5.0
"""Seconds after which mailer probes whether it has credit again."""

CLIENT_COUNT = 1000
OPERATOR_CODES = ("903", "912", "916", "921", "999")
TAGS = ("vip", "new", "staff", None)
TIME_ZONES = (
    "Europe/Kaliningrad",
    "Europe/Moscow",
    "Asia/Yekaterinburg",
    "Asia/Novosibirsk",
    "Asia/Vladivostok",
    "Asia/Kamchatka",
)
SAMPLE_FIELDS: tuple[dict[str, str], ...] = (
    {"name": "Anna", "bonus": "250"},
    {"name": "Boris", "bonus": "40"},
    {"name": "Vera"},
    {"name": "Gleb", "bonus": "1200"},
    {"name": "Daria", "bonus": "75"},
    {"name": "Ivan"},
    {},
)
"""Fields of the clients: some have no bonus, and some no name."""

CLUB_NAME, CLUB_SIZE = "Loyalty club", 300
"""A list, and how many clients are on it."""
BONUS_TEXT = "{{ name | Dear customer }}, your {{ bonus | 0 }} bonus points are valid until Sunday."

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


class EndedMailing(msgspec.Struct, frozen=True):
    """A mailing that has ended before the demo starts."""

    started_ago: timedelta
    duration: timedelta
    text: str
    tag: str | None
    """The clients with this tag are its audience; None: all clients."""
    rejected_percent: int
    """Messages in each hundred that the gateway rejected."""
    not_delivered_percent: int
    """Messages in each hundred that the gateway accepted and could not deliver."""
    no_receipt_percent: int = 1
    """Messages in each hundred of which the gateway said no more than that it accepted them."""


ENDED_MAILINGS = (
    EndedMailing(
        started_ago=20 * HOUR,
        duration=9 * HOUR,
        text="Our new shop opens on Friday at ten.",
        tag=None,
        rejected_percent=1,
        not_delivered_percent=2,
    ),
    EndedMailing(
        started_ago=6 * HOUR,
        duration=4 * HOUR,
        text="A gift waits for you at the counter.",
        tag="vip",
        rejected_percent=2,
        not_delivered_percent=6,
    ),
)
# $1: the tag of the clients, or null for all clients.
SELECT_AUDIENCE = "SELECT id FROM client WHERE tag = $1 OR $1 IS NULL ORDER BY id"


@asynccontextmanager
async def demo_environment(settings: Settings) -> AsyncIterator[Settings]:
    """Run the sandbox gateways and create a data folder; yield the settings that use them."""
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="mailer-demo-"))
    await asyncio.to_thread(folder.chmod, 0o755)  # PostgreSQL's user must enter it
    port = settings.port or await asyncio.to_thread(_find_free_port)
    calls = CallOptions(
        callback_secret=secrets.token_urlsafe(),
        receipt_delay=RECEIPT_DELAY,
        receipt_failed=0.04,
        receipt_loss=0.01,
        reply_share=0.05,
        stop_share=0.3,
    )
    is_main_used = asyncio.Event()
    main = SandboxGateway(
        SANDBOX_FAULTS, kind=MAIN, calls=calls, on_request=lambda _request: is_main_used.set()
    )
    backup = SandboxGateway(SANDBOX_FAULTS, kind=BACKUP)
    try:
        async with main.run() as main_url, backup.run() as backup_url:
            gateways = folder / "gateways.toml"
            tables = (
                main.gateway_table("main", main_url) + MAIN_KEYS,
                backup.gateway_table("backup", backup_url) + BACKUP_KEYS,
            )
            await asyncio.to_thread(gateways.write_text, "\n".join(tables), encoding="utf-8")
            outages = asyncio.create_task(_cause_outages(main, is_main_used))
            yield msgspec.structs.replace(
                settings,
                auth="none",
                host="127.0.0.1",
                port=port,
                public_url=f"http://127.0.0.1:{port}",
                receipt_wait=RECEIPT_WAIT,
                breaker_reset=BREAKER_RESET,
                database_url=None,
                data_dir=str(folder),
                gateways=str(gateways),
                gateway_url=None,
            )
            outages.cancel()
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _find_free_port() -> int:
    """Return a port that is free now: the sandbox must know the port before mailer listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


async def _cause_outages(gateway: SandboxGateway, is_used: asyncio.Event) -> None:
    """Let a gateway be without credit for a while, again and again, once it is used."""
    await is_used.wait()
    while True:
        await asyncio.sleep(UNTIL_OUTAGE)
        gateway.fail_for(OUTAGE_SECONDS, "no_credit")
        await asyncio.sleep(OUTAGE_SECONDS)


async def create_demo_data(engine: AsyncEngine) -> None:
    """Create the clients, and mailings that are ended, paused, scheduled, due now and due soon."""
    now = database_clock.now()
    async with engine.connect() as pooled:
        database = await asyncpg_connection(pooled)
        ids = await create_clients(
            database, CLIENT_COUNT, operator_codes=OPERATOR_CODES, tags=TAGS, time_zones=TIME_ZONES
        )
        await set_fields(database, ids, *SAMPLE_FIELDS)
        for ended in ENDED_MAILINGS:
            await _create_ended_mailing(database, ended, start=now - ended.started_ago)

    paused = _new_mailing(
        now, "The shop is closed on Monday.", client_filter="new, staff", duration=DAY
    )
    paused_id = (await service.create(engine, paused, COMMAND_LINE)).id
    await service.pause(engine, paused_id, COMMAND_LINE)

    club = await lists.create(engine, NewList(name=CLUB_NAME), COMMAND_LINE)
    await lists.add_members(engine, club.id, ListMembers(ids=ids[:CLUB_SIZE]), COMMAND_LINE)
    tomorrow = now.replace(hour=6, minute=0, second=0, microsecond=0) + DAY
    scheduled = _new_mailing(
        tomorrow, BONUS_TEXT, client_filter=AudienceLists(lists=[CLUB_NAME]), duration=DAY
    )
    scheduled = msgspec.structs.replace(
        scheduled,
        name="Bonus points",
        labels=["loyalty"],
        send_interval_time_start="10:00",
        send_interval_time_end="20:00",
    )
    await service.create(engine, scheduled, COMMAND_LINE)

    await service.create(engine, _new_mailing(now, TEXT), COMMAND_LINE)
    soon = now + timedelta(seconds=30)
    due_soon = _new_mailing(soon, "Tonight only: everything at half price.", client_filter="vip")
    due_soon = msgspec.structs.replace(due_soon, name="Half-price evening", labels=["sale", "vip"])
    await service.create(engine, due_soon, COMMAND_LINE)


async def _create_ended_mailing(
    database: asyncpg.Connection, ended: EndedMailing, start: datetime
) -> None:
    """Create a finished mailing with its messages and their results."""
    audience = [row["id"] for row in await database.fetch(SELECT_AUDIENCE, ended.tag)]
    mailing = SampleMailing(
        start=start,
        lasts=ended.duration,
        status="finished",
        clients=len(audience),
        text=ended.text,
        client_filter=ended.tag,
    )
    [mailing_id] = await create_mailings(database, mailing)
    results: list[SampleResult] = [
        *[("undelivered", "rejected_400")] * ended.rejected_percent,
        *[("undelivered", "not_delivered_40001")] * ended.not_delivered_percent,
        *[("sent", "no_receipt")] * ended.no_receipt_percent,
    ]
    results += [("delivered", None)] * (100 - len(results))
    spread = 0.9 * ended.duration  # the last result comes a little before the end
    await create_messages(database, mailing_id, audience, *results, at=start, spread=spread)
    await settle_mailings(database, [mailing_id])


def _new_mailing(
    start: datetime, text: str, *, client_filter: ClientFilter = None, duration: timedelta = HOUR
) -> NewMailing:
    return NewMailing(
        datetime_start=start,
        datetime_end=start + duration,
        text=text,
        client_filter=client_filter,
    )


def print_greeting(address: str, echo: Callable[[str], None]) -> None:
    """Print what runs and where to open it."""
    echo(f"""
mailer runs with two sandbox gateways, {CLIENT_COUNT:,} sample clients and sample mailings:
one is being sent, one starts in half a minute, others have ended, are paused or start tomorrow.
The gateway "main" is without credit for a while, again and again. Meanwhile "backup" is used.
Messages of "main" are accepted first, and delivered when its receipts say so. Some clients reply.

  pages          {address}/
  try the API    {address}/docs
  API reference  {address}/redoc
  mailings       curl {address}/api/v1/mailings

Ctrl-C stops the demo and deletes its data.""")
