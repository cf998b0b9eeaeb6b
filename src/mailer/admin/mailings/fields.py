"""The fields of the mailing form as texts: from a mailing, and back to the models of the API.

Moments are local times in a time zone that the form itself contains. So a form keeps its meaning
when the viewer chooses another time zone before sending it.
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

from mailer.admin.language import gettext_noop
from mailer.client.model import known_zones
from mailer.errors import FieldError, InvalidError
from mailer.mailing.client_filter import ClientFilter
from mailer.mailing.model import Mailing, MailingChange, NewMailing
from mailer.validation import check

FILTER_LISTS = ("operator_codes", "tags", "time_zones")
FORM_FIELDS_BY_INPUT = {
    "text": ("text",),
    "datetime_start": ("start",),
    "datetime_end": ("end",),
    "send_interval_time_start": ("opens",),
    "send_interval_time_end": ("closes",),
    "client_filter": ("audience", "terms", *FILTER_LISTS),
    "on_unknown": ("on_unknown",),
}
"""Fields of the API, and the fields of the form that each of them is built from."""
MAILING_FIELDS = ("zone", *(field for fields in FORM_FIELDS_BY_INPUT.values() for field in fields))
FORM_FIELD_BY_ERROR = {
    **{name: fields[0] for name, fields in FORM_FIELDS_BY_INPUT.items()},
    "client_filter": "terms",
    **{f"client_filter.{name}": name for name in ("audience", *FILTER_LISTS)},
}
"""The field of the form that shows the errors of a field of the API."""

DEFAULT_OPENS, DEFAULT_CLOSES = "09:00", "21:00"
"""Sending window of a new mailing: nobody should be woken by accident."""
DEFAULT_DURATION = timedelta(days=1)
"""Duration of a new mailing: within one day, the sending window opens in every time zone."""
START_ROUNDING = timedelta(minutes=5)
"""The proposed start of a new mailing is the next multiple of this."""
LOCAL_TIME_PATTERN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?", re.ASCII)
"""A local date and time as `<input type="datetime-local">` sends it."""
NOT_A_MOMENT = gettext_noop("must be a date and a time")
NO_SUCH_TIME = gettext_noop("does not exist on that day: the clocks go forward and skip this time")
EMPTY_FILTER = gettext_noop("must have an entry; null means everybody")

FormValues = Mapping[str, str]


# ---- from a mailing to the form --------------------------------------------------------------


def blank_values(now: datetime, zone: str) -> dict[str, str]:
    """Return the fields of a new mailing, with safe defaults: one day, in the daytime."""
    start = _next_start(now)
    return {
        **dict.fromkeys(MAILING_FIELDS, ""),
        "zone": zone,
        "start": _local_time(start, zone),
        "end": _local_time(start + DEFAULT_DURATION, zone),
        "opens": DEFAULT_OPENS,
        "closes": DEFAULT_CLOSES,
        "audience": "everybody",
        "on_unknown": "retry",
    }


def values_of(mailing: Mailing, zone: str) -> dict[str, str]:
    """Return the fields of a mailing exactly as a browser sends them back if nothing is changed."""
    return {
        **dict.fromkeys(MAILING_FIELDS, ""),
        "zone": zone,
        "text": mailing.text.replace("\r\n", "\n").replace("\r", "\n"),
        "start": _local_time(mailing.datetime_start, zone),
        "end": _local_time(mailing.datetime_end, zone),
        "opens": mailing.send_interval_time_start or "",
        "closes": mailing.send_interval_time_end or "",
        "on_unknown": mailing.on_unknown,
        **_filter_values(mailing.client_filter),
    }


def copied_values(mailing: Mailing, now: datetime, zone: str) -> dict[str, str]:
    """Return the fields of a copy of a mailing, with the same duration.

    The copy keeps the start if it is in the future, else it gets the next proposed start.
    """
    start = mailing.datetime_start if mailing.datetime_start > now else _next_start(now)
    end = start + (mailing.datetime_end - mailing.datetime_start)
    return values_of(mailing, zone) | {
        "start": _local_time(start, zone),
        "end": _local_time(end, zone),
    }


def fingerprint(mailing: Mailing) -> str:
    """Return a hash of a mailing's form, to detect that another user has changed the mailing."""
    return f"{crc32(msgspec.json.encode(values_of(mailing, 'UTC'))):08x}"


def _next_start(now: datetime) -> datetime:
    return now + (datetime.min.replace(tzinfo=UTC) - now) % START_ROUNDING


def _local_time(moment: datetime, zone: str) -> str:
    local = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    return local.isoformat(timespec="seconds" if local.second else "minutes")


def _filter_values(client_filter: ClientFilter) -> dict[str, str]:
    if client_filter is None:
        return {"audience": "everybody"}
    if isinstance(client_filter, str):
        return {"audience": "terms", "terms": _one_line(client_filter)}
    lists = {name: getattr(client_filter, name) for name in FILTER_LISTS}
    joined = {name: _join(entries) for name, entries in lists.items() if entries is not UNSET}
    return {"audience": "lists", **joined}


def _join(entries: Sequence[str]) -> str:
    """Return a list on one line; entries that contain a comma or a quote are quoted as in CSV."""
    return ", ".join(
        '"{}"'.format(entry.replace('"', '""')) if {",", '"'} & set(entry) else entry
        for entry in map(_one_line, entries)
    )


def _one_line(text: str) -> str:
    """Return a text as a browser keeps it in a single-line field."""
    return text.replace("\r", "").replace("\n", "")


# ---- from the form to the API ----------------------------------------------------------------


def read_new(values: FormValues, now: datetime) -> NewMailing:
    """Return the mailing that a form describes; raises `InvalidError` with every wrong field."""
    return _validate(values, {}, now)


def read_change(values: FormValues, mailing: Mailing, now: datetime) -> MailingChange:
    """Return the changes that a form makes to a mailing: only fields whose texts differ.

    Raises `InvalidError` with every field that would be wrong in the changed mailing.
    """
    unchanged = _unchanged(values, mailing)
    new = _validate(values, unchanged, now)
    changed = {name: getattr(new, name) for name in FORM_FIELDS_BY_INPUT if name not in unchanged}
    return MailingChange(**changed)


def read_draft(
    values: FormValues, mailing: Mailing | None, now: datetime
) -> tuple[MailingChange, dict[str, str]]:
    """Return the valid fields of a form that is being filled in, and an error for each wrong field.

    A field that is still empty is not reported as wrong.
    """
    unchanged = {} if mailing is None else _unchanged(values, mailing)
    api_values, errors = _read_values(values, unchanged)
    try:
        check(MailingChange, api_values, now)
    except InvalidError as error:
        errors += error.errors
    wrong_names = {error.field.partition(".")[0] for error in errors}
    valid = {name: value for name, value in api_values.items() if name not in wrong_names}
    messages = {
        FORM_FIELD_BY_ERROR.get(error.field, error.field): error.message
        for error in reversed(errors)  # the first error of a field wins
    }
    shown = {field: message for field, message in messages.items() if values.get(field)}
    return check(MailingChange, valid, now), shown


def zone_of(values: FormValues) -> str:
    """Return the time zone of the local times in a form."""
    return values["zone"] if values["zone"] in known_zones() else "UTC"


def _unchanged(values: FormValues, mailing: Mailing) -> dict[str, Any]:
    """Return the fields of the API that a form leaves unchanged, with their stored values."""
    before = values_of(mailing, zone_of(values))
    return {
        name: msgspec.to_builtins(getattr(mailing, name))
        for name, fields in FORM_FIELDS_BY_INPUT.items()
        if all(values[field] == before[field] for field in fields)
    }


def _validate(values: FormValues, unchanged: Mapping[str, Any], now: datetime) -> NewMailing:
    api_values, errors = _read_values(values, unchanged)
    try:
        new = check(NewMailing, api_values, now)
    except InvalidError as error:
        reported = {known.field for known in errors}
        errors += (found for found in error.errors if found.field not in reported)
    if errors:
        order = list(FORM_FIELDS_BY_INPUT)
        raise InvalidError(sorted(errors, key=lambda e: order.index(e.field.partition(".")[0])))
    return new


def _read_values(
    values: FormValues, unchanged: Mapping[str, Any]
) -> tuple[dict[str, Any], list[FieldError]]:
    """Return the values for the API as far as they can be read, and errors for the others."""
    api_values: dict[str, Any] = {"text": values["text"], "on_unknown": values["on_unknown"]}
    errors: list[FieldError] = []
    for name in ("datetime_start", "datetime_end"):
        try:
            moment = _read_moment(values[FORM_FIELD_BY_ERROR[name]], zone_of(values))
        except ValueError as error:
            errors.append(FieldError(name, str(error)))
        else:
            api_values |= {} if moment is None else {name: moment}
    for name in ("send_interval_time_start", "send_interval_time_end"):
        api_values[name] = values[FORM_FIELD_BY_ERROR[name]].strip() or None
    try:
        api_values["client_filter"] = _read_filter(values)
    except InvalidError as error:
        errors += error.errors
    errors = [error for error in errors if error.field.partition(".")[0] not in unchanged]
    return {**api_values, **unchanged}, errors


def _read_moment(text: str, zone: str) -> str | None:
    """Return a local time in a time zone as a moment for the API, or None for an empty text.

    A local time that occurs twice, when clocks go back, means its first occurrence. Raises
    `ValueError` with a message for the user.
    """
    if not text.strip():
        return None
    if not LOCAL_TIME_PATTERN.fullmatch(text.strip()):
        raise ValueError(NOT_A_MOMENT)
    try:
        local = datetime.fromisoformat(text.strip())
        moment = local.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
        round_trip = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    except (ValueError, OverflowError) as error:
        raise ValueError(NOT_A_MOMENT) from error
    if round_trip != local:
        raise ValueError(NO_SUCH_TIME)
    return moment.isoformat()


def _read_filter(values: FormValues) -> str | dict[str, list[str]] | None:
    """Return the client filter that a form describes; raises `InvalidError`."""
    match values["audience"]:
        case "everybody":
            return None
        case "terms":
            return values["terms"]
        case "lists":
            lists = {name: _split(values[name]) for name in FILTER_LISTS}
            filled_in = {name: entries for name, entries in lists.items() if entries}
            if filled_in:
                return filled_in
            raise InvalidError([FieldError("client_filter.operator_codes", EMPTY_FILTER)])
        case _:
            raise InvalidError([FieldError("client_filter.audience", "is required")])


def _split(text: str) -> list[str]:
    """Return the entries of a list on one line: separated by commas, with spaces trimmed."""
    try:
        rows = list(csv.reader([_one_line(text)], skipinitialspace=True))
    except csv.Error:  # an entry over 128 KiB; validation refuses it
        return [text]
    return [entry for row in rows for cell in row if (entry := cell.strip())]
