"""Save an example of the daily report as an HTML file: `python docs/pictures/report.py FILE`.

The report is about yesterday in Moscow. Its mailings are created in a temporary database.
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
    """Hours from its start to its end."""
    clients: int
    """Size of its audience."""
    undelivered: int
    """Messages in each hundred that the gateway did not deliver."""
    waiting: int = 0
    """Messages that are still to be sent."""


EXAMPLES = (
    Example(starts_at=9, hours=10, clients=24_000, undelivered=2),
    Example(starts_at=11, hours=3, clients=6_500, undelivered=9),
    Example(starts_at=14, hours=4, clients=3_200, undelivered=1),
    Example(starts_at=18, hours=12, clients=16_000, undelivered=3, waiting=4_100),
)


async def fill(database: asyncpg.Connection, midnight: datetime) -> None:
    """Create the mailings of the day that begins at `midnight`, with their messages and results."""
    clients = await create_clients(database, 24_000, time_zones=(ZONE,))
    for example in EXAMPLES:
        start, lasts = midnight + example.starts_at * HOUR, example.hours * HOUR
        status = "running" if example.waiting else "finished"
        [mailing_id] = await create_mailings(
            database,
            SampleMailing(start=start, lasts=lasts, status=status, clients=example.clients),
        )
        # in each thousand messages: ten times as many as in each hundred
        failures: dict[SampleResult, int] = {
            ("undelivered", "rejected_400"): 5 * example.undelivered,
            ("undelivered", "attempts_exhausted"): 3 * example.undelivered,
            ("unknown", "timeout"): example.undelivered,
            ("cancelled", "expired"): example.undelivered,
        }
        results = [result for result, share in failures.items() for _ in range(share)]
        results += [("delivered", None)] * (1_000 - len(results))
        sent_count = example.clients - example.waiting
        sent, waiting = clients[-sent_count:], clients[: example.waiting]
        # A finished mailing was sent during nine tenths of its time; one that is still running,
        # during a part that looks plausible in the report.
        spread = 0.9 * lasts * (sent_count / example.clients) ** 1.6
        await create_messages(database, mailing_id, sent, *results, at=start, spread=spread)
        await create_messages(database, mailing_id, waiting, SCHEDULED, at=start)
        if status == "finished":
            await settle_mailings(database, [mailing_id])


async def create_report(folder: Path) -> str:
    """Return the report as HTML; `folder` is for the temporary database."""
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
    """Save the report to the given file."""
    with tempfile.TemporaryDirectory(prefix="mailer-pictures-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # if this runs as root, PostgreSQL's own user must enter it
        Path(sys.argv[1]).write_text(asyncio.run(create_report(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
