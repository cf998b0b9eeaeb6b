"""Saves the daily report of a plausible day as a page: `python docs/pictures/report.py FILE`.

The day is yesterday in Moscow, in a throw-away database.
"""

import asyncio
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import asyncpg
import msgspec

from mailer.daily_report.render import render_html
from mailer.daily_report.report import daily_report, day_bounds
from mailer.db.engine import asyncpg_connection, create_engine
from mailer.db.migrate import migrate
from mailer.embedded_postgres.cluster import embedded_postgres
from mailer.sample_data import (
    SCHEDULED,
    SampleMailing,
    SampleResult,
    create_clients,
    create_mailings,
    create_messages,
    settle_mailings,
)

ZONE = "Europe/Moscow"
HOUR = timedelta(hours=1)


class Example(msgspec.Struct, frozen=True):
    """A mailing of the day."""

    starts_at: int
    """Hour of the day."""
    hours: int
    clients: int
    undelivered: int
    """Messages in each hundred that the gateway did not deliver."""
    waiting: int = 0
    """Messages that are still to be sent."""


EXAMPLES = (
    Example(9, 10, 24_000, 2),
    Example(11, 3, 6_500, 9),
    Example(14, 4, 3_200, 1),
    Example(18, 12, 16_000, 3, waiting=4_100),
)


async def fill(database: asyncpg.Connection, midnight: datetime) -> None:
    """Add the mailings of the day that begins at `midnight`, with the results of their messages."""
    clients = await create_clients(database, 24_000, time_zones=(ZONE,))
    for example in EXAMPLES:
        start, lasts = midnight + example.starts_at * HOUR, example.hours * HOUR
        status = "running" if example.waiting else "finished"
        [mailing_id] = await create_mailings(
            database,
            SampleMailing(start=start, lasts=lasts, status=status, clients=example.clients),
        )
        failures: dict[SampleResult, int] = {
            ("undelivered", "rejected_400"): 5 * example.undelivered,
            ("undelivered", "attempts_exhausted"): 3 * example.undelivered,
            ("unknown", "timeout"): example.undelivered,
            ("cancelled", "expired"): example.undelivered,
        }
        results = [result for result, share in failures.items() for _ in range(share)]
        results += [("delivered", None)] * (1_000 - len(results))
        done, waiting = example.clients - example.waiting, clients[: example.waiting]
        spread = 0.9 * lasts * (done / example.clients) ** 1.6
        await create_messages(
            database, mailing_id, clients[-done:], *results, at=start, spread=spread
        )
        await create_messages(database, mailing_id, waiting, SCHEDULED, at=start)
        if status == "finished":
            await settle_mailings(database, [mailing_id])


async def page(folder: Path) -> str:
    """Return the report as HTML."""
    day = datetime.now(ZoneInfo(ZONE)).date() - timedelta(days=1)
    midnight, _ = day_bounds(day, ZoneInfo(ZONE))
    async with embedded_postgres(folder) as url:
        engine = create_engine(url)
        await migrate(engine)
        async with engine.connect() as pooled:
            await fill(await asyncpg_connection(pooled), midnight)
        report = await daily_report(engine, day, ZONE)
        await engine.dispose()
    return render_html(report)


def main() -> None:
    """Save the page to the file that is given."""
    with tempfile.TemporaryDirectory(prefix="mailer-pictures-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL's user passes through when this runs as root
        Path(sys.argv[1]).write_text(asyncio.run(page(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
