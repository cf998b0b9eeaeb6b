"""The mailings of the soak: made, changed, paused, cancelled, retried and deleted over the API."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import aiohttp
import asyncpg

from soaking.api import TIMEOUT, Api
from soaking.journal import Draw, Journal
from soaking.troubles import Fleet

ZONES = (
    "UTC",
    "Europe/Moscow",
    "Asia/Yekaterinburg",
    "Asia/Kolkata",
    "America/New_York",
    "Asia/Vladivostok",
)
CLIENTS = 3_000
SHORT, WINDOWED, RESUMED = 0.5, 0.5, 0.8
"""Parts of the mailings that end soon, that have a window, and that go on after a pause."""
SHORTEST = timedelta(seconds=3)
ADD_CLIENTS = """
    INSERT INTO client (phone, operator_code, tag, time_zone)
    SELECT '79' || lpad(n::text, 9, '0'), '9' || lpad((n % 90)::text, 2, '0'),
        CASE WHEN n <= 10 THEN 'ten' WHEN n <= 70 THEN 'sixty' WHEN n <= 370 THEN 'some'
            WHEN n <= 1370 THEN 'many' END, ($2::text[])[1 + n % cardinality($2::text[])]
    FROM generate_series(1, $1::bigint) AS n ORDER BY n"""
FILTERS: tuple[object, ...] = (
    *("ten", "ten", "sixty", "sixty", "sixty", "some", "some", "some", "many", None),
    "ten, sixty",
    "900, 901,some",
    {"tags": ["many"], "time_zones": ["Asia/Kolkata", "UTC"]},
    {"operator_codes": ["911", "912", "913"], "time_zones": list(ZONES[:4])},
)
ACTIONS = {"change": 6, "pause": 4, "retry": 4, "delete": 2, "cancel": 1, "resume": 1}
"""What is done to mailings, and how often."""


async def add_clients(database_url: str) -> None:
    """Fill the directory."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(ADD_CLIENTS, CLIENTS, list(ZONES))
    await connection.close()


class Operator:
    """Makes mailings until the soak is over, and does to each what people do."""

    def __init__(self, fleet: Fleet, journal: Journal, draw: Draw, ends_at: datetime) -> None:
        self._fleet = fleet
        self._journal = journal
        self._draw = draw
        self._ends_at = ends_at
        self.made: set[int] = set()

    async def run(self) -> None:
        """Make mailings, one every few seconds; each goes its own way."""
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session, asyncio.TaskGroup() as tasks:
            number = 0
            while await self._journal.rest(self._draw.uniform(0.5, 4)):
                number += 1
                tasks.create_task(self._live(session, self._draw.part(number)))

    async def _live(self, session: aiohttp.ClientSession, draw: Draw) -> None:
        """Make a mailing and do a few things to it."""
        api = Api(session, self._fleet, self._journal, draw)
        mailing = await api.call(0, "create", lambda: new_mailing(draw, self._ends_at))
        if mailing is None:
            return
        self.made.add(mailing["id"])
        for _ in range(draw.choice((0, 1, 1, 2, 3, 4))):
            if not await self._journal.rest(draw.uniform(0.3, 8)):
                return
            [action] = draw.choices(list(ACTIONS), list(ACTIONS.values()))
            await self._act(api, mailing, action, draw)
            if action == "delete":
                return

    async def _act(self, api: Api, mailing: dict[str, Any], action: str, draw: Draw) -> None:
        if action == "change":
            start = datetime.fromisoformat(mailing["datetime_start"])
            await api.call(mailing["id"], action, lambda: a_change(draw, start, self._ends_at))
        else:
            await api.call(mailing["id"], action)
        if action == "pause" and draw.random() < RESUMED:
            await self._journal.rest(draw.uniform(0.2, 6))
            await api.call(mailing["id"], "resume")


def new_mailing(draw: Draw, ends_at: datetime) -> dict[str, Any]:
    """Return a mailing of some kind: due or to come, short or until everything ends."""
    now = datetime.now(UTC)
    start = now + timedelta(seconds=draw.choice((-1, 0, 0, draw.uniform(1, 12))))
    start = min(start, ends_at - SHORTEST)
    is_short = draw.random() < SHORT
    end = start + timedelta(seconds=draw.uniform(5, 20))
    return {
        "datetime_start": start.isoformat(),
        "datetime_end": min(end if is_short else ends_at, ends_at).isoformat(),
        "text": "Your order is ready.",
        "client_filter": draw.choice(FILTERS),
        "on_unknown": draw.choice(("retry", "hold")),
        **a_window(draw, now),
    }


def a_window(draw: Draw, now: datetime) -> dict[str, str | None]:
    """Return no window, or one that is open in some zones, and opens or closes soon in others."""
    opens = closes = None
    if draw.random() < WINDOWED:
        local = now.astimezone(ZoneInfo(draw.choice(ZONES)))
        since = draw.choice((-36_000, -3_600, -60, draw.uniform(2, 14)))
        until = draw.choice((draw.uniform(15, 30), draw.uniform(15, 30), 3_600, 36_000))
        opens = (local + timedelta(seconds=since)).strftime("%H:%M:%S")
        closes = (local + timedelta(seconds=until)).strftime("%H:%M:%S")
    return {"send_interval_time_start": opens, "send_interval_time_end": closes}


def a_change(draw: Draw, start: datetime, ends_at: datetime) -> dict[str, Any]:
    """Return a change of one thing of a mailing that starts at `start`."""
    now = datetime.now(UTC)
    match draw.choice(("text", "end", "window", "filter")):
        case "text":
            return {"text": f"Your order is ready, number {draw.randrange(1_000)}."}
        case "end":
            end = max(now, start) + timedelta(seconds=draw.uniform(2, 25))
            return {"datetime_end": min(end, ends_at).isoformat()}
        case "window":
            return a_window(draw, now)
        case _:
            return {"client_filter": draw.choice(FILTERS)}
