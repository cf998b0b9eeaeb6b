"""The fields of a mailing's form, as texts: from a mailing, and back to what the API takes.

Moments are on the clock of a zone that the form carries, so that it means what it showed also when
another one is chosen meanwhile.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32
from zoneinfo import ZoneInfo

import msgspec
from msgspec import UNSET

from mailer.admin.language import marked
from mailer.client.model import known_zones
from mailer.errors import FieldError, InvalidError
from mailer.mailing.model import ClientFilter, Mailing, MailingChange, NewMailing
from mailer.validation import check

LISTS = ("operator_codes", "tags", "time_zones")
MADE_OF = {
    "text": ("text",),
    "datetime_start": ("start",),
    "datetime_end": ("end",),
    "send_interval_time_start": ("opens",),
    "send_interval_time_end": ("closes",),
    "client_filter": ("audience", "terms", *LISTS),
    "on_unknown": ("on_unknown",),
}
"""What the API takes, and the fields of the form that it is made of."""
FIELDS = ("zone", *(field for fields in MADE_OF.values() for field in fields))
NAMES = {
    **{name: fields[0] for name, fields in MADE_OF.items()},
    "client_filter": "terms",
    **{f"client_filter.{name}": name for name in ("audience", *LISTS)},
}
"""Where in the form it stands what is wrong with something."""

OPENS, CLOSES = "09:00", "21:00"
"""Of a new mailing: nobody is to be woken by accident."""
LASTS = timedelta(days=1)
"""Of a new mailing: in so much time the hours open once for everybody, wherever they live."""
STEP = timedelta(minutes=5)
"""A start that is proposed is the next such moment."""
WALL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?", re.ASCII)
"""A moment as `<input type="datetime-local">` sends it."""
NO_MOMENT = marked("must be a date and a time")
NO_SUCH_TIME = marked("does not exist on that day: the clocks go forward and skip this time")
ALL_EMPTY = marked("must have an entry; null means everybody")

Values = Mapping[str, str]


# ---- into the form ---------------------------------------------------------------------------


def blank(now: datetime, zone: str) -> dict[str, str]:
    """Return the fields of a new mailing: a safe one, within a day and by daylight."""
    start = _soon(now)
    return {
        **dict.fromkeys(FIELDS, ""),
        "zone": zone,
        "start": _wall(start, zone),
        "end": _wall(start + LASTS, zone),
        "opens": OPENS,
        "closes": CLOSES,
        "audience": "everybody",
        "on_unknown": "retry",
    }


def written(mailing: Mailing, zone: str) -> dict[str, str]:
    """Return the fields of a mailing, as a browser sends them back when nothing is changed."""
    return {
        **dict.fromkeys(FIELDS, ""),
        "zone": zone,
        "text": mailing.text.replace("\r\n", "\n").replace("\r", "\n"),
        "start": _wall(mailing.datetime_start, zone),
        "end": _wall(mailing.datetime_end, zone),
        "opens": mailing.send_interval_time_start or "",
        "closes": mailing.send_interval_time_end or "",
        "on_unknown": mailing.on_unknown,
        **_written_filter(mailing.client_filter),
    }


def copied(mailing: Mailing, now: datetime, zone: str) -> dict[str, str]:
    """Return the fields of a copy: as long, from its start on if that is to come, else soon."""
    start = mailing.datetime_start if mailing.datetime_start > now else _soon(now)
    end = start + (mailing.datetime_end - mailing.datetime_start)
    return written(mailing, zone) | {"start": _wall(start, zone), "end": _wall(end, zone)}


def state(mailing: Mailing) -> str:
    """Return what differs once somebody has changed what the form shows of a mailing."""
    return f"{crc32(msgspec.json.encode(written(mailing, 'UTC'))):08x}"


def _soon(now: datetime) -> datetime:
    return now + (datetime.min.replace(tzinfo=UTC) - now) % STEP


def _wall(moment: datetime, zone: str) -> str:
    local = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    return local.isoformat(timespec="seconds" if local.second else "minutes")


def _written_filter(given: ClientFilter) -> dict[str, str]:
    if given is None:
        return {"audience": "everybody"}
    if isinstance(given, str):
        return {"audience": "terms", "terms": _one_line(given)}
    lists = {name: getattr(given, name) for name in LISTS}
    joined = {name: _join(entries) for name, entries in lists.items() if entries is not UNSET}
    return {"audience": "lists", **joined}


def _join(entries: Sequence[str]) -> str:
    """Return a list on one line; an entry with a comma or a quote in it is quoted, as in CSV."""
    return ", ".join(
        '"{}"'.format(entry.replace('"', '""')) if {",", '"'} & set(entry) else entry
        for entry in map(_one_line, entries)
    )


def _one_line(text: str) -> str:
    """Return a text as a browser keeps it in a field of one line."""
    return text.replace("\r", "").replace("\n", "")


# ---- out of the form -------------------------------------------------------------------------


def read_new(values: Values, now: datetime) -> NewMailing:
    """Return the mailing that a form describes; raises `InvalidError` naming all that is wrong."""
    return _checked(values, {}, now)


def read_change(values: Values, mailing: Mailing, now: datetime) -> MailingChange:
    """Return what a form changes in a mailing: where its texts are the same, nothing.

    Raises `InvalidError` naming all that is wrong with the mailing as it would be.
    """
    kept = _kept(values, mailing)
    whole = _checked(values, kept, now)
    changed = {name: getattr(whole, name) for name in MADE_OF if name not in kept}
    return MailingChange(**changed)


def read_draft(
    values: Values, mailing: Mailing | None, now: datetime
) -> tuple[MailingChange, dict[str, str]]:
    """Return what is right already in a form that is being filled in, and what is wrong by field.

    What is still empty is not wrong yet.
    """
    kept = {} if mailing is None else _kept(values, mailing)
    given, errors = _given(values, kept)
    try:
        check(MailingChange, given, now)
    except InvalidError as error:
        errors += error.errors
    wrong = {error.field.partition(".")[0] for error in errors}
    right = {name: value for name, value in given.items() if name not in wrong}
    told = {NAMES.get(error.field, error.field): error.message for error in reversed(errors)}
    typed = {field: message for field, message in told.items() if values.get(field)}
    return check(MailingChange, right, now), typed


def zone_of(values: Values) -> str:
    """Return the zone on whose clock a form's moments are."""
    return values["zone"] if values["zone"] in known_zones() else "UTC"


def _kept(values: Values, mailing: Mailing) -> dict[str, Any]:
    """Return what a form leaves as it is, exactly as it is."""
    before = written(mailing, zone_of(values))
    return {
        name: msgspec.to_builtins(getattr(mailing, name))
        for name, fields in MADE_OF.items()
        if all(values[field] == before[field] for field in fields)
    }


def _checked(values: Values, kept: Mapping[str, Any], now: datetime) -> NewMailing:
    given, errors = _given(values, kept)
    try:
        new = check(NewMailing, given, now)
    except InvalidError as error:
        told = {found.field for found in errors}
        errors += (found for found in error.errors if found.field not in told)
    if errors:
        place = list(MADE_OF)
        raise InvalidError(sorted(errors, key=lambda e: place.index(e.field.partition(".")[0])))
    return new


def _given(values: Values, kept: Mapping[str, Any]) -> tuple[dict[str, Any], list[FieldError]]:
    """Return what the API takes, as far as it can be read, and what cannot."""
    given: dict[str, Any] = {"text": values["text"], "on_unknown": values["on_unknown"]}
    errors: list[FieldError] = []
    for name in ("datetime_start", "datetime_end"):
        try:
            moment = _moment(values[NAMES[name]], zone_of(values))
        except ValueError as error:
            errors.append(FieldError(name, str(error)))
        else:
            given |= {} if moment is None else {name: moment}
    for name in ("send_interval_time_start", "send_interval_time_end"):
        given[name] = values[NAMES[name]].strip() or None
    try:
        given["client_filter"] = _read_filter(values)
    except InvalidError as error:
        errors += error.errors
    errors = [error for error in errors if error.field.partition(".")[0] not in kept]
    return {**given, **kept}, errors


def _moment(text: str, zone: str) -> str | None:
    """Return a moment on a zone's clock as the API takes it, None for nothing.

    Of a time that the clock shows twice the first is meant. Raises `ValueError`.
    """
    if not text.strip():
        return None
    if not WALL.fullmatch(text.strip()):
        raise ValueError(NO_MOMENT)
    try:
        wall = datetime.fromisoformat(text.strip())
        moment = wall.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
        back = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    except (ValueError, OverflowError) as error:
        raise ValueError(NO_MOMENT) from error
    if back != wall:
        raise ValueError(NO_SUCH_TIME)
    return moment.isoformat()


def _read_filter(values: Values) -> str | dict[str, list[str]] | None:
    """Return the filter that is chosen; raises `InvalidError`."""
    match values["audience"]:
        case "everybody":
            return None
        case "terms":
            return values["terms"]
        case "lists":
            lists = {name: _split(values[name]) for name in LISTS}
            given = {name: entries for name, entries in lists.items() if entries}
            if given:
                return given
            raise InvalidError([FieldError("client_filter.operator_codes", ALL_EMPTY)])
        case _:
            raise InvalidError([FieldError("client_filter.audience", "is required")])


def _split(text: str) -> list[str]:
    """Return the entries of a list on one line, split by commas, blanks trimmed."""
    try:
        rows = list(csv.reader([_one_line(text)], skipinitialspace=True))
    except csv.Error:  # an entry of more than 128 KiB, which no rule allows
        return [text]
    return [entry for row in rows for each in row if (entry := each.strip())]
