"""The fields of the mailing form as texts: from a mailing, and back to the models of the API.

Moments are local times in the time zone that the hidden field `zone` contains. So a form keeps its
meaning when the viewer chooses another time zone before sending it.

In this module, a *name* is a field of the API, and a *field* is one of the form.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from msgspec import UNSET

from mailer.admin.language import gettext_noop
from mailer.client.model import known_zones
from mailer.errors import FieldError, InvalidError
from mailer.mailing.client_filter import ClientFilter
from mailer.mailing.model import Mailing, MailingChange, NewMailing, passed_end
from mailer.validation import check

FILTER_LISTS = ("operator_codes", "tags", "time_zones")
"""The lists of a client filter; each is a name in the API and also a field of the form."""
FORM_FIELDS_BY_NAME = {
    "name": ("name",),
    "labels": ("labels",),
    "text": ("text",),
    "datetime_start": ("start",),
    "datetime_end": ("end",),
    "send_interval_time_start": ("opens",),
    "send_interval_time_end": ("closes",),
    "client_filter": ("audience", "terms", *FILTER_LISTS),
    "on_unknown": ("on_unknown",),
    "purpose": ("purpose",),
    "priority": ("priority",),
    "rate": ("rate",),
    "gateway": ("gateway",),
    "sender": ("sender",),
}
"""Names in the API, and the fields of the form that each of them is built from."""
MAILING_FIELDS = ("zone", *(field for fields in FORM_FIELDS_BY_NAME.values() for field in fields))
"""All fields of the form that describe a mailing."""
MAIN_FIELD_BY_NAME = {
    **{name: fields[0] for name, fields in FORM_FIELDS_BY_NAME.items()},
    "client_filter": "terms",
    **{f"client_filter.{name}": name for name in ("audience", *FILTER_LISTS)},
}
"""By name, the main field of the form, which shows the errors. Only errors have dotted names."""

DEFAULT_OPENS, DEFAULT_CLOSES = "09:00", "21:00"
"""Sending window that the form of a new mailing proposes: no message should wake anybody."""
DEFAULT_DURATION = timedelta(days=1)
"""Duration that the form proposes: within one day, the sending window opens in every time zone."""
START_ROUNDING = timedelta(minutes=5)
"""The start that the form proposes is the next full multiple of this, such as 12:05."""
LOCAL_TIME_PATTERN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?", re.ASCII)
"""A local date and time as `<input type="datetime-local">` sends it."""
DECIMAL_PATTERN = re.compile(r"\d{1,20}(\.\d{1,20})?", re.ASCII)
"""A number as users type it, once a decimal comma is replaced by a point."""
NOT_A_MOMENT = gettext_noop("must be a date and a time")
NO_SUCH_TIME = gettext_noop("does not exist on that day: the clocks go forward and skip this time")
NO_AUDIENCE = gettext_noop("must be chosen: all clients, or some of them")
EMPTY_FILTER = gettext_noop("must have an entry; null means everybody")

FormValues = Mapping[str, str]
"""The text of each field of `MAILING_FIELDS`."""


# ---- from a mailing to the form --------------------------------------------------------------


def blank_values(now: datetime, zone: str) -> dict[str, str]:
    """Return the fields of a new mailing: for one day, in the daytime, without an audience."""
    start = _next_start(now)
    return {
        **dict.fromkeys(MAILING_FIELDS, ""),
        "zone": zone,
        "start": _local_time(start, zone),
        "end": _local_time(start + DEFAULT_DURATION, zone),
        "opens": DEFAULT_OPENS,
        "closes": DEFAULT_CLOSES,
        "on_unknown": "retry",
        "purpose": "marketing",
        "priority": "normal",
    }


def values_of(mailing: Mailing, zone: str) -> dict[str, str]:
    """Return the fields of a mailing exactly as a browser sends them back if nothing is changed."""
    return {
        **dict.fromkeys(MAILING_FIELDS, ""),
        "zone": zone,
        "name": mailing.name or "",
        "labels": _join(mailing.labels),
        "text": mailing.text.replace("\r\n", "\n").replace("\r", "\n"),
        "start": _local_time(mailing.datetime_start, zone),
        "end": _local_time(mailing.datetime_end, zone),
        "opens": mailing.send_interval_time_start or "",
        "closes": mailing.send_interval_time_end or "",
        "on_unknown": mailing.on_unknown,
        "purpose": mailing.purpose,
        "priority": mailing.priority,
        "rate": "" if mailing.rate is None else f"{mailing.rate:.15g}",
        "gateway": mailing.gateway or "",
        "sender": mailing.sender or "",
        **_filter_values(mailing.client_filter),
    }


def copied_values(mailing: Mailing, now: datetime, zone: str) -> dict[str, str]:
    """Return the fields of a copy of a mailing, with the same duration.

    The copy has the same start if that is in the future, else the start of a new mailing.
    """
    start = mailing.datetime_start if mailing.datetime_start > now else _next_start(now)
    end = start + (mailing.datetime_end - mailing.datetime_start)
    return values_of(mailing, zone) | {
        "start": _local_time(start, zone),
        "end": _local_time(end, zone),
    }


def _next_start(now: datetime) -> datetime:
    """Return the start that the form proposes: the next multiple of `START_ROUNDING`."""
    multiple = datetime.min.replace(tzinfo=UTC)  # as every midnight
    until_next_multiple = (multiple - now) % START_ROUNDING  # a remainder is never negative
    return now + until_next_multiple


def _local_time(moment: datetime, zone: str) -> str:
    """Return a moment as the value of `<input type="datetime-local">`; seconds only if not 0."""
    local = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    return local.isoformat(timespec="seconds" if local.second else "minutes")


def _filter_values(client_filter: ClientFilter) -> dict[str, str]:
    """Return the fields of a client filter: the selected radio button and its text fields."""
    if client_filter is None:
        return {"audience": "everybody"}
    if isinstance(client_filter, str):
        return {"audience": "terms", "terms": _one_line(client_filter)}
    lists = {name: getattr(client_filter, name) for name in FILTER_LISTS}
    joined = {name: _join(entries) for name, entries in lists.items() if entries is not UNSET}
    return {"audience": "lists", **joined}


def _join(entries: Sequence[str]) -> str:
    """Return a list on one line; entries that contain a comma or a quote are quoted as in CSV."""

    def quoted(entry: str) -> str:
        needs_quotes = "," in entry or '"' in entry
        return '"{}"'.format(entry.replace('"', '""')) if needs_quotes else entry

    return ", ".join(quoted(_one_line(entry)) for entry in entries)


def _one_line(text: str) -> str:
    """Return a text as a browser keeps it in a single-line field."""
    return text.replace("\r", "").replace("\n", "")


# ---- from the form to the API ----------------------------------------------------------------


def read_new(values: FormValues, now: datetime, *, is_draft: bool) -> NewMailing:
    """Return the mailing that a form describes; raises `InvalidError` with every wrong field."""
    return _validate(values, unchanged={}, now=now, is_draft=is_draft)


def read_change(
    values: FormValues, mailing: Mailing, now: datetime, *, is_draft: bool
) -> MailingChange:
    """Return the changes that a form makes to a mailing: only fields that the user has changed.

    `is_draft` is whether it is a draft after the change, too. Raises `InvalidError` with every
    field that would be wrong in the changed mailing.
    """
    unchanged = _unchanged_values(values, mailing)
    changed_mailing = _validate(values, unchanged, now, is_draft=is_draft)
    changed_names = [name for name in FORM_FIELDS_BY_NAME if name not in unchanged]
    return MailingChange(**{name: getattr(changed_mailing, name) for name in changed_names})


def read_typed(
    values: FormValues, mailing: Mailing | None, now: datetime
) -> tuple[MailingChange, dict[str, str]]:
    """Return what is valid in a form that is being filled in, and the message of each wrong field.

    A field that is still empty is not reported as wrong. `mailing` is the mailing that the form
    changes; None if it creates one.
    """
    unchanged = {} if mailing is None else _unchanged_values(values, mailing)
    api_values, errors = _read_values(values, unchanged)
    try:
        valid = check(MailingChange, api_values, now)
        errors += passed_end(valid.provided_values(), now)
    except InvalidError as error:
        errors += error.errors
    wrong_names = {_top_level_name(error) for error in errors}
    valid_values = {name: value for name, value in api_values.items() if name not in wrong_names}
    messages = {
        MAIN_FIELD_BY_NAME.get(error.field, error.field): error.message
        for error in reversed(errors)  # so that the first error of a field is kept
    }
    shown_messages = {field: message for field, message in messages.items() if values.get(field)}
    return check(MailingChange, valid_values, now), shown_messages


def zone_of(values: FormValues) -> str:
    """Return the time zone of the local times in a form."""
    return values["zone"] if values["zone"] in known_zones() else "UTC"


def _unchanged_values(values: FormValues, mailing: Mailing) -> dict[str, Any]:
    """Return the values of a mailing that a form leaves unchanged, by their names in the API.

    They are taken from the mailing, because the form cannot contain some of them exactly, such as
    fractions of a second.
    """
    original_values = values_of(mailing, zone_of(values))
    return {
        name: msgspec.to_builtins(getattr(mailing, name))
        for name, fields in FORM_FIELDS_BY_NAME.items()
        if all(values[field] == original_values[field] for field in fields)
    }


def _validate(
    values: FormValues, unchanged: Mapping[str, Any], now: datetime, *, is_draft: bool
) -> NewMailing:
    """Return the mailing that a form describes, with the `unchanged` values of the API.

    Raises `InvalidError` with every wrong field, in the order of the form.
    """
    api_values, errors = _read_values(values, unchanged)
    try:
        new = check(NewMailing, {**api_values, "draft": is_draft}, now)
    except InvalidError as error:
        # a value that could not be read is absent here, and reported once
        reported = {unreadable.field for unreadable in errors}
        errors += (wrong for wrong in error.errors if wrong.field not in reported)
    if errors:
        order = list(FORM_FIELDS_BY_NAME)
        raise InvalidError(sorted(errors, key=lambda error: order.index(_top_level_name(error))))
    return new


def _top_level_name(error: FieldError) -> str:
    """Return the name of the wrong field, such as `client_filter` for `client_filter.tags`."""
    return error.field.partition(".")[0]


def _read_values(
    values: FormValues, unchanged: Mapping[str, Any]
) -> tuple[dict[str, Any], list[FieldError]]:
    """Return the values for the API as far as they can be read, and errors for the others.

    The `unchanged` values replace those of the form.
    """
    copied = ("text", "on_unknown", "purpose", "priority")
    api_values: dict[str, Any] = {name: values[name] for name in copied}
    api_values["rate"] = _read_number(values["rate"])
    for name in ("name", "gateway", "sender"):
        api_values[name] = values[name].strip() or None
    api_values["labels"] = _split(values["labels"])
    errors: list[FieldError] = []
    for name in ("datetime_start", "datetime_end"):
        try:
            moment = _read_moment(values[MAIN_FIELD_BY_NAME[name]], zone_of(values))
        except ValueError as error:
            errors.append(FieldError(name, str(error)))
        else:
            if moment is not None:
                api_values[name] = moment
    for name in ("send_interval_time_start", "send_interval_time_end"):
        api_values[name] = values[MAIN_FIELD_BY_NAME[name]].strip() or None
    try:
        api_values["client_filter"] = _read_filter(values)
    except InvalidError as error:
        errors += error.errors
    errors = [error for error in errors if _top_level_name(error) not in unchanged]
    return {**api_values, **unchanged}, errors


def _read_number(text: str) -> float | str | None:
    """Return a number with a decimal point or comma, or None for an empty text.

    A text that is no number is returned as it is; validation refuses it.
    """
    if not text.strip():
        return None
    number = "".join(text.split()).replace(",", ".")
    return float(number) if DECIMAL_PATTERN.fullmatch(number) else text


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
        local_again = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    except (ValueError, OverflowError) as error:
        raise ValueError(NOT_A_MOMENT) from error
    if local_again != local:  # a local time that does not exist
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
            raise InvalidError([FieldError("client_filter.audience", NO_AUDIENCE)])


def _split(text: str) -> list[str]:
    """Return the entries of a list on one line: separated by commas, with spaces trimmed."""
    try:
        rows = list(csv.reader([_one_line(text)], skipinitialspace=True))
    except csv.Error:  # an entry over 128 KiB; validation refuses it
        return [text]
    return [entry for row in rows for cell in row if (entry := cell.strip())]
