"""Saves the daily report of a plausible day as a page: `python docs/pictures/report.py FILE`.

The day is yesterday in Moscow, in a throw-away database.
"""

import asyncio
import base64
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from sqlalchemy import DateTime, Integer, bindparam, text
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.daily_report.chart import draw
from mailer.daily_report.report import daily_report, day_bounds, render_html
from mailer.db.engine import create_engine
from mailer.db.migrate import migrate
from mailer.embedded_postgres.cluster import embedded_postgres

ZONE = "Europe/Moscow"

# when it starts, for how many hours, to how many clients, how many more than have an outcome, and
# the part of each hundred messages that the gateway did not deliver
MAILINGS = [
    {"start": 9, "hours": 10, "clients": 24_000, "waiting": 0, "failing": 2},
    {"start": 11, "hours": 3, "clients": 6_500, "waiting": 0, "failing": 9},
    {"start": 14, "hours": 4, "clients": 3_200, "waiting": 0, "failing": 1},
    {"start": 18, "hours": 12, "clients": 16_000, "waiting": 4_100, "failing": 3},
]
ADD_CLIENTS = text("""
    INSERT INTO client (phone, operator_code, time_zone)
    SELECT '7916' || lpad(n::text, 7, '0'), '916', 'Europe/Moscow'
    FROM generate_series(1, 24000) AS n""")
ADD_MAILING = text("""
    INSERT INTO mailing (datetime_start, datetime_end, text, status, clients_count,
        audience_cursor, audience_until, is_closed, is_settled, updated_at)
    VALUES (:start, :end, 'Your order is ready.', :status, :clients, 24000, 24000,
        :is_closed, :is_settled, :end) RETURNING id""")
INSERT_COUNTS = text("INSERT INTO mailing_counts (mailing_id) VALUES (:id)")
# Most soon after the start, fewer and fewer later; what repeats itself is no picture of a day.
ADD_MESSAGES = text("""
    INSERT INTO message (mailing_id, client_id, operator_code, time_zone, due_at, sent_at,
        updated_at, attempts, status, reason)
    SELECT :id, n, '916', 'Europe/Moscow', :start,
        CASE WHEN status IN ('delivered', 'unknown') THEN at END, at, 1, status, reason
    FROM generate_series(1, :clients) AS n
    CROSS JOIN LATERAL (SELECT
        :start + power(n::float8 / :clients, 1.6) * 0.9
            * (:end - :start) AS at,
        n * 7919 % 1000 AS lot) AS drawn
    CROSS JOIN LATERAL (SELECT
        CASE WHEN n > :clients - :waiting THEN 'scheduled'
            WHEN lot < :failing * 8 THEN 'undelivered' WHEN lot < :failing * 9 THEN 'unknown'
            WHEN lot < :failing * 10 THEN 'cancelled' ELSE 'delivered' END AS status,
        CASE WHEN n > :clients - :waiting THEN NULL
            WHEN lot < :failing * 5 THEN 'rejected_400'
            WHEN lot < :failing * 8 THEN 'attempts_exhausted'
            WHEN lot < :failing * 9 THEN 'timeout' WHEN lot < :failing * 10 THEN 'expired'
            END AS reason) AS judged""").bindparams(
    *(bindparam(name, type_=Integer()) for name in ("clients", "waiting", "failing")),
    *(bindparam(name, type_=DateTime(timezone=True)) for name in ("start", "end")),
)


async def fill(engine: AsyncEngine, midnight: datetime) -> None:
    """Add the mailings of the day that begins at `midnight`, with the results of their messages."""
    async with engine.begin() as connection:
        await connection.execute(ADD_CLIENTS)
        for made_up in MAILINGS:
            start = midnight + timedelta(hours=made_up["start"])
            values = {
                **made_up,
                "start": start,
                "end": start + timedelta(hours=made_up["hours"]),
                "status": "running" if made_up["waiting"] else "finished",
                "is_closed": not made_up["waiting"],
                "is_settled": not made_up["waiting"],
            }
            mailing_id = (await connection.execute(ADD_MAILING, values)).scalar_one()
            await connection.execute(INSERT_COUNTS, {"id": mailing_id})
            await connection.execute(ADD_MESSAGES, values | {"id": mailing_id})


async def page(folder: Path) -> str:
    """Return the report with its picture inside, as a browser shows it."""
    day = datetime.now(ZoneInfo(ZONE)).date() - timedelta(days=1)
    midnight, _ = day_bounds(day, ZoneInfo(ZONE))
    async with embedded_postgres(folder) as url:
        engine = create_engine(url)
        await migrate(engine)
        await fill(engine, midnight)
        report = await daily_report(engine, day, ZONE)
        await engine.dispose()
    picture = base64.b64encode(draw(report.hours, ZONE)).decode()
    return render_html(report, f"data:image/png;base64,{picture}")


def main() -> None:
    """Save the page to the file that is given."""
    with tempfile.TemporaryDirectory(prefix="mailer-pictures-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL's user passes through when this runs as root
        Path(sys.argv[1]).write_text(asyncio.run(page(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
