"""Filters of the templates: values as text in the language of the current `use_language` block."""

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from babel.dates import format_date, format_datetime, format_timedelta
from babel.numbers import format_decimal, format_percent
from markupsafe import Markup

from mailer import statuses
from mailer.admin import labels
from mailer.admin.language import (
    LANGUAGES,
    current_language,
    gettext,
    locale,
    translate_message,
)
from mailer.admin.viewer import Viewer
from mailer.clock import database_clock
from mailer.mailing.actions import Action, allowed_actions
from mailer.mailing.client_filter import split_terms
from mailer.mailing.model import Mailing
from mailer.statuses import MailingStatus, MessageStatus

DATETIME_FORMAT = "d MMM y, HH:mm"
"""The default format of moments, in the notation of Unicode (LDML)."""
ONE_DECIMAL_BELOW = 10
"""Numbers below this have up to one decimal, other numbers none."""
MIN_PARTIAL_SHARE, MAX_PARTIAL_SHARE = 0.001, 0.999
"""Smallest and largest share that is shown for some, but not all: 0.1 % and 99.9 %."""
MIN_UNITS = 1.2
"""A duration is shown in the largest unit of which it has at least this many: 71 minutes are not
shown as hours, but 72 minutes are."""
BYTES_PER_KIB = 1024
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
FORMAT_CACHE_SIZE = 8192
"""Formatted numbers to cache, and as many moments: live pages show the same ones repeatedly."""


class NamedMailing(Protocol):
    """A mailing, or a part of one, with its name and its text."""

    @property
    def name(self) -> str | None:
        """The name; None when it has none."""

    @property
    def text(self) -> str:
        """The text."""


def load_formats() -> None:
    """Load the date and number formats of each language, which takes long."""
    for language in LANGUAGES:
        format_datetime(locale=locale(language))
        format_decimal(0, locale=locale(language))


def format_number(value: float) -> str:
    """Return a number with separators between thousands, and below ten with up to one decimal."""
    pattern = "#,##0.#" if value < ONE_DECIMAL_BELOW else "#,##0"
    return _format_number(value, pattern, current_language())


def format_rate(value: float) -> str:
    """Return the rate of a mailing, in messages a second, with up to three decimals."""
    return _format_number(value, "#,##0.###", current_language())


@lru_cache(maxsize=FORMAT_CACHE_SIZE)
def _format_number(value: float, pattern: str, language: str) -> str:
    return str(format_decimal(value, pattern, locale(language)))


def format_money(value: float) -> str:
    """Return an amount of money with two decimals, without a currency."""
    return str(format_decimal(value, "#,##0.00", locale(current_language())))


def format_share(part: int, whole: int) -> str:
    """Return a share in percent: 100 % only for all, 0 % only for none."""
    share = part / whole if whole else 0.0
    pattern = "#,##0%"
    if 0 < share < 1:
        share = min(MAX_PARTIAL_SHARE, max(MIN_PARTIAL_SHARE, share))
        pattern = "#,##0.#%"
    return str(format_percent(share, pattern, locale(current_language())))


def format_local_time(moment: datetime, zone: str, pattern: str = DATETIME_FORMAT) -> str:
    """Return a moment as local time in a time zone."""
    return str(
        format_datetime(moment, pattern, tzinfo=ZoneInfo(zone), locale=locale(current_language()))
    )


def format_day(day: date) -> str:
    """Return a day with its weekday, such as `Monday, 30 November 2026`."""
    text = str(format_date(day, "EEEE, d MMMM y", locale(current_language())))
    return text[0].upper() + text[1:]


def format_moment(moment: datetime, viewer: Viewer, pattern: str = DATETIME_FORMAT) -> Markup:
    """Return a moment in the viewer's time zone, as a `<time>` element with UTC in its title."""
    return _format_moment(moment, viewer.time_zone, pattern, current_language())


@lru_cache(maxsize=FORMAT_CACHE_SIZE)
def _format_moment(moment: datetime, zone: str, pattern: str, _language: str) -> Markup:
    """Return the element of `format_moment`; `_language` only distinguishes the cached results."""
    in_utc = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    title = f"{format_local_time(moment, 'UTC')} UTC"
    text = format_local_time(moment, zone, pattern)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(in_utc, title, text)


def format_duration(seconds: float) -> str:
    """Return a duration in words, rounded to one unit, such as `2 hours`."""
    duration = timedelta(seconds=round(seconds))
    return str(format_timedelta(duration, threshold=MIN_UNITS, locale=locale(current_language())))


def format_bytes(count: int) -> str:
    """Return a number of bytes in the largest unit in which it is at least 1."""
    value, unit = float(count), 0
    while value >= BYTES_PER_KIB and unit < len(BYTE_UNITS) - 1:
        value, unit = value / BYTES_PER_KIB, unit + 1
    return f"{format_number(value)} {BYTE_UNITS[unit]}"


def excerpt(text: str, max_length: int = 80) -> str:
    """Return the beginning of a text on one line, of at most `max_length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= max_length else f"{line[: max_length - 1].rstrip()}…"


def mailing_title(mailing: NamedMailing, max_length: int = 80) -> str:
    """Return the name of a mailing, or the beginning of its text if it has none."""
    return excerpt(mailing.name or mailing.text, max_length)


def mailing_actions(mailing: Mailing) -> list[Action]:
    """Return the actions that a mailing allows now."""
    return allowed_actions(mailing, database_clock.now())


def mailing_status_label(status: MailingStatus) -> str:
    """Return the label of a mailing's status."""
    return gettext(labels.MAILING_STATUS_LABELS[status])


def is_past(moment: datetime) -> bool:
    """Return whether a moment has passed on the clock of the database."""
    return moment <= database_clock.now()


def message_status_label(status: MessageStatus) -> str:
    """Return the label of a message's status."""
    return gettext(statuses.STATUSES[status].label)


FILTERS: Mapping[str, Callable[..., Any]] = {
    "number": format_number,
    "rate": format_rate,
    "money": format_money,
    "percent": format_share,
    "clock": format_local_time,
    "day": format_day,
    "moment": format_moment,
    "is_past": is_past,
    "duration": format_duration,
    "bytes": format_bytes,
    "excerpt": excerpt,
    "mailing_title": mailing_title,
    "mailing_actions": mailing_actions,
    "translate": translate_message,
    "terms": split_terms,
    "reason": labels.reason_label,
    "receipt": labels.label_lookup(labels.RECEIPT_LABELS),
    "scope": labels.label_lookup(labels.SCOPE_LABELS),
    "actor": labels.label_lookup(labels.ACTOR_LABELS),
    "target": labels.label_lookup(labels.TARGET_LABELS),
    "action": labels.label_lookup(labels.ACTION_LABELS),
    "field_name": labels.label_lookup(labels.FIELD_LABELS),
    "purpose": labels.label_lookup(labels.PURPOSE_LABELS),
    "priority": labels.label_lookup(labels.PRIORITY_LABELS),
    "opt_out_source": labels.label_lookup(labels.OPT_OUT_SOURCE_LABELS),
    "answer_status": labels.label_lookup(labels.ANSWER_STATUS_LABELS),
    "reply_action": labels.label_lookup(labels.REPLY_ACTION_LABELS),
    "on_unknown": labels.label_lookup(labels.ON_UNKNOWN_LABELS),
    "event": labels.label_lookup(labels.EVENT_LABELS),
    "delivery_status": labels.label_lookup(labels.DELIVERY_STATUS_LABELS),
    "delivery_error": labels.delivery_error_label,
    "gateway_state": labels.label_lookup(labels.GATEWAY_STATE_LABELS),
    "breaker": labels.label_lookup(labels.BREAKER_LABELS),
    "role": labels.label_lookup(labels.ROLE_LABELS),
    "browser": labels.browser_name,
    "mailing_status": mailing_status_label,
    "mailing_order": labels.label_lookup(labels.MAILING_ORDER_LABELS),
    "message_status": message_status_label,
}
"""The filters by the name that templates use."""
