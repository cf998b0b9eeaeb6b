"""The preview beside the mailing form: text as SMS, audience, sending windows, forecast.

It is built again while the user types, so it must also work for a form that is not complete.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from msgspec import UNSET
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.admin.mailings.intent import Intent, read_intent
from mailer.admin.mailings.template_preview import (
    TemplatePreview,
    create_template_preview,
)
from mailer.admin.mailings.text_preview import TextPreview, preview_text
from mailer.client.field_names import known_field_names
from mailer.client.model import Client
from mailer.clock import database_clock
from mailer.contact_cap import ContactCap
from mailer.forecast import service as forecasts
from mailer.forecast.cost import Cost
from mailer.forecast.cost_estimate import estimate_cost
from mailer.forecast.model import Forecast
from mailer.forecast.throughput import usable_gateways
from mailer.forecast.tiers import Gateways
from mailer.gateway.channel import Channels
from mailer.mailing import audience
from mailer.mailing.audience_overlap import AudienceOverlap, read_overlap
from mailer.mailing.field_types import Purpose
from mailer.mailing.model import Mailing, MailingChange, NewMailing, excluded_opt_outs
from mailer.mailing.text_reach import TextReach, recent_text_reach
from mailer.mailing.text_template import TextTemplate
from mailer.mailing.window import DAY, OpenInterval, SendingWindow, offsets_of, window_between

SAMPLE_CLIENTS = 5
"""Number of clients of the audience that the preview shows as examples."""
MAX_ZONES = 8
"""Maximum number of time zones that the preview shows: those with the most clients."""
REQUIRED_FOR_FORECAST = frozenset({"datetime_start", "datetime_end", "client_filter"})
"""Fields without which there is no forecast."""
DAY_WIDTH = 1000
"""Width of the drawing of a day, in SVG units; `preview.html` has the same number."""


class Bar(msgspec.Struct, frozen=True):
    """An interval of a day as it is drawn: from `x` on, 0 to `DAY_WIDTH`."""

    x: float
    width: float


class ZoneWindow(msgspec.Struct, frozen=True):
    """The sending window of one time zone, during one day in the viewer's time zone."""

    time_zone: str
    clients: int
    offset: str
    """Offset from UTC at the start of the day, such as `UTC+3`."""
    open_intervals: tuple[OpenInterval, ...]
    """When the sending window is open."""
    open_bars: tuple[Bar, ...]
    """The drawing of `open_intervals`."""
    sending_bars: tuple[Bar, ...]
    """The drawing of the parts of `open_intervals` between the mailing's start and end."""


class PreviewDay(msgspec.Struct, frozen=True):
    """The day that the preview draws, and the period of the mailing. All moments are in UTC."""

    day_start: datetime
    day_end: datetime
    mailing_start: datetime
    """The start of the mailing; the start of the day while it is not known."""
    mailing_end: datetime
    """The end of the mailing; the end of the day while it is not known."""

    def x(self, moment: datetime) -> float:
        """Return the horizontal position of a moment; moments of other days are at the edge."""
        share_of_day = (moment - self.day_start) / (self.day_end - self.day_start)
        return round(DAY_WIDTH * min(1.0, max(0.0, share_of_day)), 1)

    def contains(self, moment: datetime) -> bool:
        """Return whether a moment is in the day."""
        return self.day_start <= moment < self.day_end

    def bars(self, intervals: Iterable[OpenInterval]) -> Iterator[Bar]:
        """Yield a bar for each interval that is at least partly in the day."""
        for interval in intervals:
            left, right = self.x(interval.opens), self.x(interval.closes)
            if right > left:
                yield Bar(left, round(right - left, 1))


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """The preview of a form that is being filled in."""

    text: TextPreview
    """Of the text as typed: with placeholders, its size is not that of a message."""
    template: TemplatePreview | None
    """None if the text has no placeholders."""
    field_names: list[str]
    """The fields that clients have, the most used one first."""
    clients: int | None
    """Size of the audience; None while the client filter is not complete."""
    opted_out: int
    """Clients of the audience whom the mailing does not reach because they have opted out."""
    sample: list[Client]
    """Some clients of the audience, as examples."""
    day: PreviewDay
    windows: tuple[ZoneWindow, ...]
    """The sending windows of the time zones with the most clients."""
    other_zones: int
    """Number of the other time zones that have clients."""
    other_clients: int
    """Number of clients in the other time zones."""
    start: datetime | None
    """The start of the mailing; None while it is not known. The same applies to `end`."""
    end: datetime | None
    forecast: Forecast | None
    """None while the form is not complete enough for a forecast."""
    capacity: forecasts.SendingCapacity
    cost: Cost | None
    """The cost if each client of the audience who has not opted out gets it; None if no gateway has
    a price."""
    intent: Intent
    """What the button of the form does."""
    overlap: AudienceOverlap | None
    """None for a mailing that has started or is no marketing, and while the audience is not
    known."""


async def build_preview(  # noqa: PLR0913, PLR0917  # the form, and what its forecast depends on
    engine: AsyncEngine,
    typed: MailingChange,
    text: str,
    zone: str,
    channels: Channels,
    mailing: Mailing | None,
    template: TextTemplate | None = None,
    contact_cap: ContactCap | None = None,
) -> Preview:
    """Return the preview of a form: `typed` are its valid values, except the `text`.

    `text` is the text as typed, even if it is not valid. `template` is None if it has no
    placeholders. `zone` is the time zone of the form's
    local times, `channels` the gateways, and `mailing` the mailing that the form changes (None if
    it creates one).
    """
    now, gateways = database_clock.now(), usable_gateways(channels)
    client_filter, opted_out = typed.client_filter, 0
    purpose = _known_purpose(typed, mailing)
    clients_by_zone, sample = dict[str, int](), list[Client]()
    text_preview = preview_text(text)
    reach = None
    if template is not None and client_filter is not UNSET:
        reach = await recent_text_reach(engine, template, client_filter, purpose)
    parts = text_preview.size.parts if reach is None else reach.average_parts
    async with engine.connect() as connection:
        if client_filter is not UNSET:
            clients_by_zone = await audience.count_by_zone(connection, client_filter)
            sample = await audience.sample(connection, client_filter, SAMPLE_CLIENTS)
            if purpose == "marketing":
                opted_out = await audience.count(connection, client_filter, opted_out=True)
        capacity = await forecasts.read_capacity(connection, gateways, mailing)
        expected_cost = await _expected_cost(connection, typed, mailing, parts, channels)
        field_names = await known_field_names(connection)
        start, end = _known_moment(typed.datetime_start), _known_moment(typed.datetime_end)
        intent = await read_intent(connection, mailing, client_filter, purpose, start, now, reach)
        overlap = None
        if client_filter is not UNSET and purpose == "marketing" and intent.kind != "save":
            mailing_id = None if mailing is None else mailing.id
            overlap = await read_overlap(
                connection, client_filter, contact_cap, mailing_id=mailing_id, period=(start, end)
            )
    day = _preview_day(start, end, now, zone)
    window = window_between(typed.send_interval_time_start, typed.send_interval_time_end)
    zones_by_size = sorted(clients_by_zone.items(), key=lambda item: (-item[1], item[0]))
    clients = sum(clients_by_zone.values())
    windows = tuple(
        _zone_window(name, count, window, day) for name, count in zones_by_size[:MAX_ZONES] if count
    )
    return Preview(
        text=text_preview,
        template=None
        if template is None
        else create_template_preview(template, reach, sample, field_names),
        field_names=field_names,
        clients=None if client_filter is UNSET else clients,
        opted_out=opted_out,
        sample=sample,
        day=day,
        windows=windows,
        other_zones=sum(count > 0 for _, count in zones_by_size[MAX_ZONES:]),
        other_clients=clients - sum(shown.clients for shown in windows),
        start=start,
        end=end,
        forecast=forecasts.without_capped(
            await _forecast(engine, typed, gateways, capacity.workers, mailing, reach), overlap
        ),
        capacity=capacity,
        cost=expected_cost,
        intent=intent,
        overlap=overlap,
    )


async def _expected_cost(
    connection: AsyncConnection,
    typed: MailingChange,
    mailing: Mailing | None,
    parts: float,
    channels: Channels,
) -> Cost | None:
    """Return the cost if each client of the audience gets `parts` parts; None if not known."""
    if typed.client_filter is UNSET:
        return None
    gateway = typed.gateway
    if gateway is UNSET:
        gateway = None if mailing is None else mailing.gateway
    return await estimate_cost(
        connection,
        typed.client_filter,
        gateway,
        parts,
        channels,
        opted_out=excluded_opt_outs(_known_purpose(typed, mailing)),
    )


def _known_purpose(typed: MailingChange, mailing: Mailing | None) -> Purpose:
    """Return the purpose in a form; if it has none, that of the mailing or the default."""
    if typed.purpose is not UNSET:
        return typed.purpose
    return "marketing" if mailing is None else mailing.purpose


def _known_moment(moment: Any) -> datetime | None:  # noqa: ANN401  # a field of a form
    """Return the moment of a field in UTC; None if the field is not set."""
    return moment.astimezone(UTC) if isinstance(moment, datetime) else None


def _preview_day(
    start: datetime | None, end: datetime | None, now: datetime, zone: str
) -> PreviewDay:
    """Return the day in `zone` on which a mailing starts; today while the start is not known."""
    local = (start or now).astimezone(ZoneInfo(zone))
    midnight = datetime.combine(local.date(), time(), ZoneInfo(zone))
    day_start, day_end = midnight.astimezone(UTC), (midnight + DAY).astimezone(UTC)
    return PreviewDay(day_start, day_end, start or day_start, end or day_end)


def _zone_window(
    time_zone: str, clients: int, window: SendingWindow | None, day: PreviewDay
) -> ZoneWindow:
    """Return when the window is open in a time zone on a day; all day without a window."""
    offsets = offsets_of(time_zone, day.day_start, day.day_end)
    open_intervals = (
        (OpenInterval(day.day_start, day.day_end),)
        if window is None
        else tuple(window.open_intervals(offsets, day.day_end))
    )
    # an interval outside the mailing's period closes before it opens here, and has no bar
    sending_intervals = [
        OpenInterval(max(interval.opens, day.mailing_start), min(interval.closes, day.mailing_end))
        for interval in open_intervals
    ]
    _, offset_at_start = offsets[0]
    return ZoneWindow(
        time_zone,
        clients,
        utc_offset(offset_at_start),
        open_intervals,
        open_bars=tuple(day.bars(open_intervals)),
        sending_bars=tuple(day.bars(sending_intervals)),
    )


def utc_offset(offset: timedelta) -> str:
    """Return an offset from UTC as text, such as `UTC+5:45`."""
    hours, minutes = divmod(abs(round(offset.total_seconds() / 60)), 60)
    sign = "-" if offset < timedelta() else "+"
    return f"UTC{sign}{hours}" + (f":{minutes:02}" if minutes else "")


async def _forecast(  # noqa: PLR0913, PLR0917  # the form, and what its forecast depends on
    engine: AsyncEngine,
    typed: MailingChange,
    gateways: Gateways,
    workers: int,
    mailing: Mailing | None,
    reach: TextReach | None,
) -> Forecast | None:
    """Return the forecast, or None while the form is not complete enough."""
    values = typed.provided_values()
    has_period_and_audience = values.keys() >= REQUIRED_FOR_FORECAST
    has_opening = values.get("send_interval_time_start") is not None
    has_closing = values.get("send_interval_time_end") is not None
    if not has_period_and_audience or has_opening != has_closing:
        return None
    if mailing is not None:
        return await forecasts.of_mailing(engine, mailing.id, gateways, workers, typed, reach)
    new = NewMailing(**{"text": " ", **values})  # the text does not matter, but is required
    return await forecasts.of_unsaved(engine, new, gateways, workers, reach)
