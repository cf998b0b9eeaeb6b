"""Query parameters of the list of mailings, in the API and on the page."""

from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mailer.db.paging import Cursor
from mailer.errors import FieldError
from mailer.mailing.field_types import Label
from mailer.mailing.listing import ListOrder, possible_orders
from mailer.mailing.model import FIRST_MOMENT, LAST_MOMENT
from mailer.mailing.search import MailingFilter
from mailer.statuses import MailingStatus
from mailer.web.query import PageQuery, SearchWords

MAX_KEY = 253_402_300_799_999_999
"""Largest sort key: the microseconds from 1970 to the end of the year 9999."""
ONE_DAY = timedelta(days=1)
PeriodDay = Annotated[
    date,
    Meta(examples=["2030-01-15"], extra={"rule": "must be a date, such as 2030-01-15"}),
]


class MailingQuery(PageQuery, frozen=True, kw_only=True):
    """Filters, order and page of a list of mailings."""

    status: (
        Annotated[
            list[MailingStatus],
            Meta(
                description="Mailings with one of these statuses: `status=running,paused`, or"
                " repeated.",
                min_length=1,
                extra={"rule": "must be one or more statuses of mailings"},
            ),
        ]
        | UnsetType
    ) = UNSET
    label: Annotated[Label, Meta(description="Mailings with this label.")] | UnsetType = UNSET
    search: (
        Annotated[
            SearchWords,
            Meta(
                description="Mailings with these words, or beginnings of words, in their name, text"
                " or labels; or the mailing with this id.",
                examples=["spring sale"],
            ),
        ]
        | UnsetType
    ) = UNSET
    first_day: (
        Annotated[
            PeriodDay,
            Meta(description="Mailings that end after the beginning of this day, in UTC."),
        ]
        | UnsetType
    ) = msgspec.field(name="from", default=UNSET)
    last_day: (
        Annotated[
            PeriodDay, Meta(description="Mailings that start before the end of this day, in UTC.")
        ]
        | UnsetType
    ) = msgspec.field(name="to", default=UNSET)
    sort: (
        Annotated[
            ListOrder,
            Meta(
                description="The newest, the latest `start` or `end`, or the largest `audience`"
                " first. With `search` or `label`, another order than `newest` is possible for up"
                " to 1,000 mailings. With `from` or `to`, but without them, `start` (the default)"
                " or `end`.",
                extra={"rule": "must be newest, start, end or audience"},
            ),
        ]
        | UnsetType
    ) = UNSET
    key: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=MAX_KEY,
                description="Belongs to `before` or `after` in a sorted list; taken from `next` or"
                " `previous`.",
                extra={"rule": "must be the number that next or previous has"},
            ),
        ]
        | UnsetType
    ) = UNSET

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:
        """Report an order that is not possible with the filters, and a position without its key."""
        yield from super().broken_rules(values, at)
        for name in ("from", "to"):
            if name in values and not FIRST_MOMENT.date() < values[name] < LAST_MOMENT.date():
                yield FieldError(name, "must lie between the years 1970 and 9000")
        if "from" in values and "to" in values and values["to"] < values["from"]:
            yield FieldError("to", "must not be before from")
        orders = possible_orders(
            MailingFilter(
                search=values.get("search"),
                label=values.get("label"),
                ends_after=at if "from" in values else None,
                starts_before=at if "to" in values else None,
            )
        )
        order = values.get("sort", orders[0])
        if order not in orders:
            yield FieldError("sort", "is not possible together with these filters")
        elif order != "newest" and "key" not in values and values.keys() & {"before", "after"}:
            yield FieldError("key", "is required with before or after in a sorted list")

    @property
    def order(self) -> ListOrder | None:
        """The order of the list; None: the default of its filters."""
        return None if self.sort is UNSET else self.sort

    @property
    def position(self) -> Cursor:
        """The position of the page, for the SQL of lists."""
        key = None if self.key is UNSET else self.key
        return msgspec.structs.replace(super().position, key=key)

    def conditions(self, time_zone: str = "UTC") -> MailingFilter:
        """Return the filters, with days of a time zone."""
        zone = ZoneInfo(time_zone)
        return MailingFilter(
            search=None if self.search is UNSET else self.search,
            statuses=() if self.status is UNSET else tuple(dict.fromkeys(self.status)),
            label=None if self.label is UNSET else self.label,
            ends_after=None if self.first_day is UNSET else _midnight(self.first_day, zone),
            starts_before=None
            if self.last_day is UNSET
            else _midnight(self.last_day + ONE_DAY, zone),
        )


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    """Return the beginning of a local day."""
    return datetime.combine(day, time(), zone)
