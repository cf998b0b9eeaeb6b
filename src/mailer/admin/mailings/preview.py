"""The preview beside the mailing form: text as SMS, audience, sending windows, forecast."""

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
from mailer.forecast import service as forecasts
from mailer.forecast.model import Forecast
from mailer.gateway.throughput import ThroughputEstimate
from mailer.mailing import audience
from mailer.mailing.model import Mailing, MailingChange, NewMailing
from mailer.mailing.sms_parts import PART_CAPACITY, TextSize, count_parts
from mailer.mailing.window import DAY, OpenInterval, SendingWindow, offsets_of, window_between

SAMPLE_CLIENTS = 5
"""Clients of the audience that the preview shows."""
MAX_ZONES = 8
"""Time zones that the preview shows: those with the most clients."""
DAY_WIDTH = 1000
"""Width of a day in the drawing, in its own units."""


class TextPreview(msgspec.Struct, frozen=True):
    """The size of a text as SMS."""

    size: TextSize
    position: int
    """Position, from 1, of the first character that needs Unicode; 0 if there is none."""

    @property
    def character_name(self) -> str:
        """Code point and name of the first character that needs Unicode; it may be invisible."""
        character = self.size.forced_by or " "
        return f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()

    @property
    def part_capacity(self) -> int:
        """Capacity of each part, in units of the encoding, for this number of parts."""
        return PART_CAPACITY[self.size.encoding][self.size.parts > 1]

    @property
    def gsm_part_capacity(self) -> int:
        """Capacity of each part in GSM 03.38, for this number of parts."""
        return PART_CAPACITY["GSM 03.38"][self.size.parts > 1]


class WindowBar(msgspec.Struct, frozen=True):
    """An interval of a day as it is drawn."""

    x: float
    width: float


class ZoneWindow(msgspec.Struct, frozen=True):
    """The sending window of one time zone, during one day in the viewer's time zone."""

    time_zone: str
    clients: int
    offset: str
    """Offset from UTC at the beginning of the day, such as `UTC+3`."""
    intervals: tuple[OpenInterval, ...]
    """When the sending window is open."""
    open: tuple[WindowBar, ...]
    """The bars of `intervals`."""
    used: tuple[WindowBar, ...]
    """The bars of `intervals`, only between the start and the end of the mailing."""


class PreviewDay(msgspec.Struct, frozen=True):
    """A day from `begins` to `ends`, and the mailing's period from `start` to `end`."""

    begins: datetime
    ends: datetime
    start: datetime
    end: datetime

    def x(self, moment: datetime) -> float:
        """Return the horizontal position of a moment; moments of other days are at the edge."""
        share = (moment - self.begins) / (self.ends - self.begins)
        return round(DAY_WIDTH * min(1.0, max(0.0, share)), 1)

    def contains(self, moment: datetime) -> bool:
        """Return whether a moment is in the day."""
        return self.begins <= moment < self.ends

    def bars(self, intervals: tuple[OpenInterval, ...]) -> Iterator[WindowBar]:
        """Yield the bars of intervals, without empty ones."""
        for interval in intervals:
            x, end = self.x(interval.opens), self.x(interval.closes)
            if end > x:
                yield WindowBar(x, round(end - x, 1))


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """The preview of a form that is being filled in."""

    text: TextPreview
    clients: int | None
    """Size of the audience; None while the client filter is not complete."""
    sample: list[Client]
    day: PreviewDay
    windows: tuple[ZoneWindow, ...]
    """The largest time zones; the next two fields count the others."""
    other_zones: int
    other_clients: int
    start: datetime | None
    end: datetime | None
    forecast: Forecast | None
    capacity: forecasts.SendingCapacity
    starts_at_once: bool
    """Whether the mailing starts as soon as the form is saved: its start has passed."""


async def build_preview(  # noqa: PLR0913, PLR0917  # the form, and what its forecast depends on
    engine: AsyncEngine,
    draft: MailingChange,
    text: str,
    zone: str,
    throughput: ThroughputEstimate | None,
    mailing: Mailing | None,
) -> Preview:
    """Return the preview of a draft. `mailing` is the mailing that it changes, if any."""
    now = database_clock.now()
    client_filter, by_zone, sample = draft.client_filter, dict[str, int](), list[Client]()
    async with engine.connect() as connection:
        if client_filter is not UNSET:
            by_zone = await audience.count_by_zone(connection, client_filter)
            sample = await audience.sample(connection, client_filter, SAMPLE_CLIENTS)
        capacity = await forecasts.read_capacity(connection, throughput, mailing)
    start, end = (_known_moment(at) for at in (draft.datetime_start, draft.datetime_end))
    day = _day(start, end, now, zone)
    window = window_between(draft.send_interval_time_start, draft.send_interval_time_end)
    largest = sorted(by_zone.items(), key=lambda item: (-item[1], item[0]))
    clients = sum(by_zone.values())
    windows = tuple(
        _zone_window(name, count, window, day) for name, count in largest[:MAX_ZONES] if count
    )
    return Preview(
        text=_text(text),
        clients=None if client_filter is UNSET else clients,
        sample=sample,
        day=day,
        windows=windows,
        other_zones=sum(count > 0 for _, count in largest[MAX_ZONES:]),
        other_clients=clients - sum(shown.clients for shown in windows),
        start=start,
        end=end,
        forecast=await _forecast(engine, draft, throughput, capacity.workers, mailing),
        capacity=capacity,
        starts_at_once=start is not None and start <= now,
    )


def _known_moment(moment: Any) -> datetime | None:  # noqa: ANN401  # isinstance also excludes UNSET
    return moment.astimezone(UTC) if isinstance(moment, datetime) else None


def _text(text: str) -> TextPreview:
    size = count_parts(text)
    return TextPreview(size, text.index(size.forced_by) + 1 if size.forced_by else 0)


def _day(start: datetime | None, end: datetime | None, now: datetime, zone: str) -> PreviewDay:
    """Return the day on which a mailing starts, or today while the start is not known."""
    local = (start or now).astimezone(ZoneInfo(zone))
    midnight = datetime.combine(local.date(), time(), ZoneInfo(zone))
    begins, ends = midnight.astimezone(UTC), (midnight + DAY).astimezone(UTC)
    return PreviewDay(begins, ends, start or begins, end or ends)


def _zone_window(
    time_zone: str, clients: int, window: SendingWindow | None, day: PreviewDay
) -> ZoneWindow:
    offsets = offsets_of(time_zone, day.begins, day.ends)
    intervals = (
        (OpenInterval(day.begins, day.ends),)
        if window is None
        else tuple(window.open_intervals(offsets, day.ends))
    )
    used = tuple(
        OpenInterval(max(interval.opens, day.start), min(interval.closes, day.end))
        for interval in intervals
    )
    offset = utc_offset(offsets[0][1])
    bars = tuple(day.bars(intervals)), tuple(day.bars(used))
    return ZoneWindow(time_zone, clients, offset, intervals, *bars)


def utc_offset(offset: timedelta) -> str:
    """Return an offset from UTC as text, such as `UTC+5:45`."""
    hours, minutes = divmod(abs(round(offset.total_seconds() / 60)), 60)
    sign = "-" if offset < timedelta() else "+"
    return f"UTC{sign}{hours}" + (f":{minutes:02}" if minutes else "")


async def _forecast(
    engine: AsyncEngine,
    draft: MailingChange,
    throughput: ThroughputEstimate | None,
    workers: int,
    mailing: Mailing | None,
) -> Forecast | None:
    """Return the forecast, or None while the draft is not complete enough."""
    required = {"datetime_start", "datetime_end", "client_filter"}
    values = draft.provided_values()
    has_half_window = (values.get("send_interval_time_start") is None) != (
        values.get("send_interval_time_end") is None
    )
    if has_half_window or not required <= values.keys():
        return None
    if mailing is not None:
        return await forecasts.of_mailing(engine, mailing.id, throughput, workers, draft)
    new = NewMailing(**{"text": " ", **values})
    return await forecasts.of_draft(engine, new, throughput, workers)
