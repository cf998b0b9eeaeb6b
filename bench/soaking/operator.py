"""The mailings of the soak, and the random actions of users on them, through the API."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import aiohttp
import asyncpg

from mailer import sample_data
from soaking.api import TIMEOUT, Api
from soaking.faults import Fleet
from soaking.journal import Journal, RandomSource
from soaking.sandbox import GATEWAYS

ZONES = (
    "UTC",
    "Europe/Moscow",
    "Asia/Yekaterinburg",
    "Asia/Kolkata",
    "America/New_York",
    "Asia/Vladivostok",
)
SHORT_SHARE = 0.5
"""Share of the mailings that end soon after their start; the others end with the soak."""
WINDOW_SHARE = 0.5
"""Share of the mailings that have a sending window."""
GATEWAY_SHARE = 0.25
"""Share of the mailings that have a gateway of their own."""
SERVICE_SHARE = 0.2
"""Share of the mailings that clients get although they have opted out."""
RESUME_SHARE = 0.8
"""Share of the paused mailings that are resumed."""
MIN_DURATION = timedelta(seconds=3)
"""Time between the start of a mailing and the end of the soak, at least."""
CLIENTS = {"ten": 10, "sixty": 60, "some": 300, "many": 1_000, None: 1_630}
"""Number of clients with each tag, and without a tag."""
# Filters in every form. Small audiences are more frequent, so that many mailings run at once.
FILTERS: tuple[object, ...] = (
    *("ten", "ten", "sixty", "sixty", "sixty", "some", "some", "some", "many", None),
    "ten, sixty",
    "900, 901,some",
    {"tags": ["many"], "time_zones": ["Asia/Kolkata", "UTC"]},
    {"operator_codes": ["911", "912", "913"], "time_zones": list(ZONES[:4])},
)
ACTION_WEIGHTS = {"change": 6, "pause": 4, "retry": 4, "delete": 2, "cancel": 1, "resume": 1}
"""Relative frequency of the API actions on a mailing."""


async def create_clients(database_url: str) -> None:
    """Create the clients of the soak, in all its time zones."""
    connection = await asyncpg.connect(database_url)
    codes = sample_data.ALL_OPERATOR_CODES[:90]
    for tag, count in CLIENTS.items():
        await sample_data.create_clients(
            connection, count, operator_codes=codes, tags=(tag,), time_zones=ZONES
        )
    await connection.close()


class Operator:
    """Creates mailings until the soak is ending, and acts on each at random as users do."""

    def __init__(
        self, fleet: Fleet, journal: Journal, rng: RandomSource, ends_at: datetime
    ) -> None:
        self._fleet = fleet
        self._journal = journal
        self._rng = rng
        self._ends_at = ends_at
        self.created_ids: set[int] = set()

    async def run(self) -> None:
        """Create a mailing every few seconds; one task handles each of them."""
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session, asyncio.TaskGroup() as tasks:
            number = 0
            while await self._journal.sleep(self._rng.uniform(0.5, 4)):
                number += 1
                tasks.create_task(self._handle_mailing(session, self._rng.substream(number)))

    async def _handle_mailing(self, session: aiohttp.ClientSession, rng: RandomSource) -> None:
        """Create a mailing, and do up to four random actions on it."""
        api = Api(session, self._fleet, self._journal, rng)
        no_id_yet = 0
        mailing = await api.call(no_id_yet, "create", lambda: new_mailing(rng, self._ends_at))
        if mailing is None:
            return
        self.created_ids.add(mailing["id"])
        for _ in range(rng.choice((0, 1, 1, 2, 3, 4))):
            if not await self._journal.sleep(rng.uniform(0.3, 8)):
                return
            [action] = rng.choices(list(ACTION_WEIGHTS), list(ACTION_WEIGHTS.values()))
            await self._act(api, mailing, action, rng)
            if action == "delete":
                return

    async def _act(self, api: Api, mailing: dict[str, Any], action: str, rng: RandomSource) -> None:
        """Do an action on a mailing; a paused mailing is usually resumed a few seconds later."""
        if action == "change":
            start = datetime.fromisoformat(mailing["datetime_start"])
            await api.call(mailing["id"], action, lambda: random_change(rng, start, self._ends_at))
        else:
            await api.call(mailing["id"], action)
        if action == "pause" and rng.random() < RESUME_SHARE:
            await self._journal.sleep(rng.uniform(0.2, 6))
            await api.call(mailing["id"], "resume")


def new_mailing(rng: RandomSource, ends_at: datetime) -> dict[str, Any]:
    """Return the JSON of a random mailing.

    It is due at once or within seconds, and ends soon after its start or with the soak.
    """
    now = datetime.now(UTC)
    start = now + timedelta(seconds=rng.choice((-1, 0, 0, rng.uniform(1, 12))))
    start = min(start, ends_at - MIN_DURATION)
    is_short = rng.random() < SHORT_SHARE
    end = start + timedelta(seconds=rng.uniform(5, 20))
    return {
        "datetime_start": start.isoformat(),
        "datetime_end": min(end if is_short else ends_at, ends_at).isoformat(),
        "text": "Your order is ready.",
        "client_filter": rng.choice(FILTERS),
        "on_unknown": rng.choice(("retry", "hold")),
        "gateway": rng.choice(GATEWAYS) if rng.random() < GATEWAY_SHARE else None,
        "purpose": "service" if rng.random() < SERVICE_SHARE else "marketing",
        **random_window(rng, now),
    }


def random_window(rng: RandomSource, now: datetime) -> dict[str, str | None]:
    """Return the fields of no sending window, or of one that opens or closes soon in some zones."""
    opens = closes = None
    if rng.random() < WINDOW_SHARE:
        local = now.astimezone(ZoneInfo(rng.choice(ZONES)))
        # seconds from now: open already or soon; closes soon or hours later
        opens_in = rng.choice((-36_000, -3_600, -60, rng.uniform(2, 14)))
        closes_in = rng.choice((rng.uniform(15, 30), rng.uniform(15, 30), 3_600, 36_000))
        opens = (local + timedelta(seconds=opens_in)).strftime("%H:%M:%S")
        closes = (local + timedelta(seconds=closes_in)).strftime("%H:%M:%S")
    return {"send_interval_time_start": opens, "send_interval_time_end": closes}


def random_change(rng: RandomSource, start: datetime, ends_at: datetime) -> dict[str, Any]:
    """Return the JSON of a random change of a mailing that starts at `start`."""
    now = datetime.now(UTC)
    match rng.choice(("text", "end", "window", "gateway", "gateway", "filter")):
        case "text":
            return {"text": f"Your order is ready, number {rng.randrange(1_000)}."}
        case "end":
            end = max(now, start) + timedelta(seconds=rng.uniform(2, 25))
            return {"datetime_end": min(end, ends_at).isoformat()}
        case "window":
            return random_window(rng, now)
        case "gateway":
            return {"gateway": rng.choice((None, *GATEWAYS))}
        case _:
            return {"client_filter": rng.choice(FILTERS)}
