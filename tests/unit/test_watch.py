"""How this process knows the database's time."""

from datetime import UTC, datetime, timedelta

import pytest

from mailer.dispatch.watch import offset_of

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


@pytest.mark.parametrize(
    ("known", "told", "took", "offset"),
    [
        (0, 3.05, 0.1, 3),  # the first answer, or a clock that was set: what is in the middle
        (3, 3.04, 0.1, 3),  # it may well be true
        (3, 5.5, 5, 3),  # the process stood still: the middle would be wrong by as much
        (3, 9, 5, 6.5),
        (-2, -1.5, 5, -2),
        (0, 0, 0, 0),
    ],
)
def test_what_is_known_of_the_clock_stays_unless_it_cannot_be_true(
    known: float, told: float, took: float, offset: float
) -> None:
    found = offset_of(seconds(known), NOON, NOON + seconds(told), NOON + seconds(took))
    assert found == seconds(offset)
