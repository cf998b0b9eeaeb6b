"""The bars of a daily report and their colours."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer.daily_report.render import MIN_WIDTH, bar_widths
from mailer.statuses import OUTCOMES, STATUSES, OutcomeCounts

VISIONS = {
    "all": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "no green": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "no blue": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
"""By colour vision, the matrix that converts a colour to the colour that is perceived.

Both are in linear RGB. Source: Machado, Oliveira and Fernandes, "A physiologically-based model for
simulation of color vision deficiency", 2009, at full severity."""
MIN_COLOUR_DIFFERENCE = 25
"""Distance in CIE L*a*b* (CIE 1976). A careful eye sees a distance of 2.5 side by side."""
COUNTS = st.builds(OutcomeCounts, **dict.fromkeys(OUTCOMES, st.integers(0, 10**9)))


@given(COUNTS, st.integers(0, 10**9))
def test_parts_fit_into_the_bar_and_are_all_visible(counts: OutcomeCounts, others: int) -> None:
    widths = dict(bar_widths(counts, whole=counts.total + others))
    assert list(widths) == [name for name in OUTCOMES if getattr(counts, name)]
    assert all(width >= MIN_WIDTH for width in widths.values())
    assert sum(widths.values()) <= 100 + 1e-9  # a rounding error


@given(COUNTS.filter(lambda counts: counts.total > 0))
def test_parts_fill_the_bar_if_every_message_has_an_outcome(counts: OutcomeCounts) -> None:
    widths = dict(bar_widths(counts, whole=counts.total))
    assert sum(widths.values()) == pytest.approx(100)


def test_widths_are_in_proportion_to_the_counts() -> None:
    widths = dict(bar_widths(OutcomeCounts.of(delivered=300, undelivered=100), whole=800))
    assert widths == pytest.approx({"delivered": 37.5, "undelivered": 12.5}, abs=MIN_WIDTH)


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_of_outcomes_differ_for_every_colour_vision(vision: str) -> None:
    colours = [
        _to_lab(_perceive(colour, vision))
        for rules in STATUSES.values()
        if (colour := rules.colour)
    ]
    differences = [math.dist(one, other) for one, other in combinations(colours, 2)]
    assert min(differences) > MIN_COLOUR_DIFFERENCE


def _perceive(colour: str, vision: str) -> list[float]:
    """Return a colour such as `#12806a` in linear RGB, as perceived with a colour vision."""
    linear_rgb = [
        # the curve of sRGB (IEC 61966-2-1)
        (level / 255 / 12.92) if level <= 10 else ((level / 255 + 0.055) / 1.055) ** 2.4
        for level in bytes.fromhex(colour.removeprefix("#"))
    ]
    return [
        min(1, max(0, sum(factor * part for factor, part in zip(row, linear_rgb, strict=True))))
        for row in VISIONS[vision]
    ]


def _to_lab(rgb: list[float]) -> tuple[float, float, float]:
    """Return a colour in CIE L*a*b*, in which distances are differences to the eye.

    `rgb` is in linear sRGB. The factors are the usual ones for the white of daylight (D65).
    """
    red, green, blue = rgb
    x, y, z = (
        part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116
        for part in (
            (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505,
            0.2126 * red + 0.7152 * green + 0.0722 * blue,
            (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089,
        )
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)
