"""The days of the calendar of mailings, and the pairs of mailings that last at the same time."""

import random
from datetime import UTC, date, datetime, timedelta

import msgspec
import pytest

from mailer.mailing.calendar import Period, period_of, step
from mailer.mailing.model import Mailing
from mailer.mailing.overlap import count_pairs, find_pairs

START = datetime(2030, 1, 15, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def mailing(number: int, starts: int, ends: int, clients: int = 10) -> Mailing:
    """Return a mailing that lasts from one hour to another one after `START`."""
    values = Mailing.EXAMPLE | {
        "id": number,
        "datetime_start": START + starts * HOUR,
        "datetime_end": START + ends * HOUR,
        "clients_count": clients,
    }
    return msgspec.convert(values, Mailing)


def pair_ids(*mailings: Mailing) -> list[tuple[int, int]]:
    """Return the ids of the pairs that last at the same time."""
    return [(pair.first.id, pair.second.id) for pair in find_pairs(mailings)]


def ids_on(period: Period, day: date, *mailings: Mailing) -> list[int]:
    """Return the ids of the mailings that last on a day of a period."""
    return [each.id for each in period.by_day(mailings)[day]]


def test_a_week_is_from_monday_to_sunday() -> None:
    week = period_of("week", date(2030, 1, 16), "UTC")
    assert (week.first, week.last) == (date(2030, 1, 14), date(2030, 1, 20))
    assert [len(days) for days in week.weeks] == [7]


def test_a_month_is_shown_in_whole_weeks() -> None:
    month = period_of("month", date(2030, 5, 31), "UTC")
    assert (month.first, month.last) == (date(2030, 4, 29), date(2030, 6, 2))
    assert [len(days) for days in month.weeks] == [7] * 5


def test_a_step_leads_to_the_neighbouring_week_or_month() -> None:
    assert step("week", date(2030, 1, 31), 1) == date(2030, 2, 7)
    assert step("month", date(2030, 1, 31), 1) == date(2030, 2, 1)
    assert step("month", date(2030, 3, 31), -1) == date(2030, 2, 28)


def test_days_are_those_of_the_time_zone_also_when_clocks_change() -> None:
    """In Berlin, 31 March 2030 begins at 23:00 UTC and has 23 hours."""
    week = period_of("week", date(2030, 3, 31), "Europe/Berlin")
    before = mailing(1, 0, 1)
    before = msgspec.structs.replace(
        before,
        datetime_start=datetime(2030, 3, 30, 22, tzinfo=UTC),
        datetime_end=datetime(2030, 3, 30, 23, tzinfo=UTC),
    )
    assert ids_on(week, date(2030, 3, 31), before) == []
    last_hour = msgspec.structs.replace(
        before,
        datetime_start=datetime(2030, 3, 31, 21, 30, tzinfo=UTC),
        datetime_end=datetime(2030, 3, 31, 22, tzinfo=UTC),
    )
    assert ids_on(week, date(2030, 3, 31), last_hour) == [1]
    monday = period_of("week", date(2030, 4, 1), "Europe/Berlin")
    assert ids_on(monday, date(2030, 4, 1), last_hour) == []


def test_mailings_that_last_at_the_same_time_are_pairs() -> None:
    assert pair_ids(mailing(1, 0, 3), mailing(2, 2, 4), mailing(3, 3, 5)) == [(1, 2), (2, 3)]


def test_a_mailing_without_clients_is_in_no_pair() -> None:
    assert pair_ids(mailing(1, 0, 3, clients=0), mailing(2, 2, 4)) == []


def test_pairs_that_may_share_most_clients_are_first() -> None:
    small, large, larger = mailing(1, 0, 3, 5), mailing(2, 0, 3, 50), mailing(3, 0, 3, 500)
    assert pair_ids(small, large, larger) == [(2, 3), (1, 2), (1, 3)]


def test_only_the_pairs_that_may_share_most_clients_are_built() -> None:
    mailings = [mailing(number, 0, 3, clients=number) for number in range(1, 41)]
    assert count_pairs(mailings) == 40 * 39 // 2
    pairs = find_pairs(mailings, 3)
    assert [(pair.first.id, pair.second.id) for pair in pairs] == [(39, 40), (38, 39), (38, 40)]


@pytest.mark.parametrize("seed", range(20))
def test_pairs_are_counted_as_they_are_found(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # no secret
    mailings = [
        mailing(number, starts := chance.randrange(9), starts + chance.randrange(1, 5), clients)
        for number, clients in enumerate(chance.choices((0, 1, 7, 50), k=12), 1)
    ]
    pairs = find_pairs(mailings)
    assert count_pairs(mailings) == len(pairs)
    assert all(pair.begins < pair.ends for pair in pairs)
