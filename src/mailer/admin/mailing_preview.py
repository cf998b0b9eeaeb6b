"""What a mailing's form shows beside itself: its text as SMS, its audience, its hours."""

import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from msgspec import UNSET
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.client.model import Client
from mailer.clock import database_clock
from mailer.gateway.pace import Pace
from mailer.mailing import audience
from mailer.mailing.forecast import Forecast
from mailer.mailing.model import Mailing, MailingChange, NewMailing
from mailer.mailing.parts import ROOM, TextSize, size_of
from mailer.mailing.window import DAY, Spell, Window, offsets_of, window_between
from mailer.report import forecast as forecasts

SAMPLE, ZONES = 5, 8
"""Clients shown of an audience, and time zones: the largest."""
SCALE = 1000
"""How wide a day is drawn."""


class Text(msgspec.Struct, frozen=True):
    """A text as SMS."""

    size: TextSize
    forced_at: int
    """Where the first character stands that no short alphabet has; 0 when there is none."""

    @property
    def code(self) -> str:
        """The number and the name of that character: many look like others, or like nothing."""
        character = self.size.forced_by or " "
        return f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()

    @property
    def room(self) -> int:
        """Units that each part has, of so many parts."""
        return ROOM[self.size.encoding][self.size.parts > 1]

    @property
    def room_otherwise(self) -> int:
        """Units that each part would have without that character."""
        return ROOM["GSM 03.38"][self.size.parts > 1]


class Bar(msgspec.Struct, frozen=True):
    """A span of a day as it is drawn."""

    x: float
    width: float


class Hours(msgspec.Struct, frozen=True):
    """When a mailing may reach those in a time zone, through a day on the viewer's clock."""

    time_zone: str
    clients: int
    offset: str
    """How far the zone's clocks are from UTC, when the day begins."""
    spells: tuple[Spell, ...]
    open: tuple[Bar, ...]
    used: tuple[Bar, ...]
    """What of the open hours lies between the mailing's start and its end."""


class Day(msgspec.Struct, frozen=True):
    """A day on a clock, and what of it a mailing takes."""

    begins: datetime
    ends: datetime
    start: datetime
    end: datetime

    def x(self, moment: datetime) -> float:
        """Return where a moment is drawn; one of another day at the edge."""
        share = (moment - self.begins) / (self.ends - self.begins)
        return round(SCALE * min(1.0, max(0.0, share)), 1)

    def has(self, moment: datetime) -> bool:
        """Whether a moment lies in the day."""
        return self.begins <= moment < self.ends

    def bars(self, spells: tuple[Spell, ...]) -> Iterator[Bar]:
        """Yield how spells are drawn, those that are not empty."""
        for spell in spells:
            x, end = self.x(spell.opens), self.x(spell.closes)
            if end > x:
                yield Bar(x, round(end - x, 1))


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to say of a form that is being filled in."""

    text: Text
    clients: int | None
    """None while it is not known who is meant."""
    sample: list[Client]
    day: Day
    hours: tuple[Hours, ...]
    other_zones: int
    other_clients: int
    start: datetime | None
    end: datetime | None
    forecast: Forecast | None
    sharing: forecasts.Sharing
    is_late: bool
    """Whether it goes out as soon as it is saved."""


async def look(  # noqa: PLR0913, PLR0917  # a form, and what it meets
    engine: AsyncEngine,
    draft: MailingChange,
    text: str,
    zone: str,
    pace: Pace | None,
    mailing: Mailing | None,
) -> Preview:
    """Return what there is to say of a draft; `mailing` is the one that it changes."""
    now = database_clock.now()
    given, by_zone, sample = draft.client_filter, dict[str, int](), list[Client]()
    async with engine.connect() as connection:
        if given is not UNSET:
            by_zone = await audience.count_by_zone(connection, given)
            sample = await audience.sample(connection, given, SAMPLE)
        sharing = await forecasts.sharing(connection, pace, mailing)
    start, end = (_aware(at) for at in (draft.datetime_start, draft.datetime_end))
    day = _day(start, end, now, zone)
    window = window_between(draft.send_interval_time_start, draft.send_interval_time_end)
    largest = sorted(by_zone.items(), key=lambda item: (-item[1], item[0]))
    clients = sum(by_zone.values())
    hours = tuple(_hours(name, count, window, day) for name, count in largest[:ZONES] if count)
    return Preview(
        text=_text(text),
        clients=None if given is UNSET else clients,
        sample=sample,
        day=day,
        hours=hours,
        other_zones=sum(count > 0 for _, count in largest[ZONES:]),
        other_clients=clients - sum(each.clients for each in hours),
        start=start,
        end=end,
        forecast=await _forecast(engine, draft, pace, sharing.processes, mailing),
        sharing=sharing,
        is_late=start is not None and start <= now,
    )


def _aware(moment: Any) -> datetime | None:  # noqa: ANN401  # UNSET has no type that tells it
    return moment.astimezone(UTC) if isinstance(moment, datetime) else None


def _text(text: str) -> Text:
    size = size_of(text)
    return Text(size, text.index(size.forced_by) + 1 if size.forced_by else 0)


def _day(start: datetime | None, end: datetime | None, now: datetime, zone: str) -> Day:
    """Return the day on which a mailing starts, today if that is not known."""
    local = (start or now).astimezone(ZoneInfo(zone))
    midnight = datetime.combine(local.date(), time(), ZoneInfo(zone))
    begins, ends = midnight.astimezone(UTC), (midnight + DAY).astimezone(UTC)
    return Day(begins, ends, start or begins, end or ends)


def _hours(time_zone: str, clients: int, window: Window | None, day: Day) -> Hours:
    offsets = offsets_of(time_zone, day.begins, day.ends)
    spells = (
        (Spell(day.begins, day.ends),)
        if window is None
        else tuple(window.spells(offsets, day.ends))
    )
    used = tuple(Spell(max(spell.opens, day.start), min(spell.closes, day.end)) for spell in spells)
    offset = utc_offset(offsets[0][1])
    bars = tuple(day.bars(spells)), tuple(day.bars(used))
    return Hours(time_zone, clients, offset, spells, *bars)


def utc_offset(offset: timedelta) -> str:
    """Return how far clocks are from UTC, such as `UTC+5:45`."""
    hours, minutes = divmod(abs(round(offset.total_seconds() / 60)), 60)
    sign = "-" if offset < timedelta() else "+"
    return f"UTC{sign}{hours}" + (f":{minutes:02}" if minutes else "")


async def _forecast(
    engine: AsyncEngine,
    draft: MailingChange,
    pace: Pace | None,
    processes: int,
    mailing: Mailing | None,
) -> Forecast | None:
    """Return what is to be expected, once there is enough to tell."""
    needed = {"datetime_start", "datetime_end", "client_filter"}
    given = draft.given()
    is_half = (given.get("send_interval_time_start") is None) != (
        given.get("send_interval_time_end") is None
    )
    if is_half or not needed <= given.keys():
        return None
    if mailing is not None:
        return await forecasts.of_mailing(engine, mailing.id, pace, processes, draft)
    new = NewMailing(**{"text": " ", **given})
    return await forecasts.of_draft(engine, new, pace, processes)
