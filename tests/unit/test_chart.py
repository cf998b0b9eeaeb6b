"""The chart of a daily report."""

import math
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from mailer.daily_report.chart import (
    COLOURS,
    HEIGHT,
    MAX_GRID_LINES,
    WIDTH,
    draw,
    format_count,
    line_step,
)
from mailer.statistics.model import Bucket
from mailer.statuses import OutcomeCounts

MIDNIGHT = datetime(2030, 1, 15, tzinfo=UTC)
# Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision
# deficiency", 2009, at full severity; on linear RGB
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
MIN_COLOUR_DIFFERENCE = 25
"""CIE 1976 difference; a careful eye sees a difference of 2.5 side by side."""


def make_day(hours: int, **counts: int) -> list[Bucket]:
    """Return a day with the same outcomes in each hour."""
    return [Bucket(MIDNIGHT + timedelta(hours=n), OutcomeCounts.of(**counts)) for n in range(hours)]


def draw_image(hours: list[Bucket]) -> Image.Image:
    return Image.open(BytesIO(draw(hours, "Europe/Moscow"))).convert("RGB")


def area(image: Image.Image, name: str) -> int:
    """Return the number of pixels in the colour of an outcome."""
    colours = image.getcolors(image.width * image.height)
    assert colours is not None
    return {colour: count for count, colour in colours}.get(ImageColor.getrgb(COLOURS[name]), 0)


@pytest.mark.parametrize("hours", [0, 23, 24, 25])
def test_chart_is_a_png_of_twice_the_displayed_size(hours: int) -> None:
    png = draw(make_day(hours, delivered=1), "Europe/Moscow")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert Image.open(BytesIO(png)).size == (2 * WIDTH, 2 * HEIGHT)


def test_area_of_an_outcome_grows_with_its_count() -> None:
    empty = draw_image(make_day(24))
    image = draw_image(make_day(24, delivered=300, undelivered=100))
    areas = {name: area(image, name) - area(empty, name) for name in COLOURS}
    assert areas["unknown"] == areas["cancelled"] == 0
    assert areas["delivered"] / areas["undelivered"] == pytest.approx(3, rel=0.05)


def test_one_failure_among_a_million_is_visible() -> None:
    empty = draw_image(make_day(24))
    image = draw_image(make_day(24, delivered=1_000_000, undelivered=1))
    assert area(image, "undelivered") > area(empty, "undelivered")


@given(st.integers(0, 10**12))
def test_there_are_at_most_five_lines_at_round_steps(highest: int) -> None:
    step = line_step(highest)
    assert highest <= step * MAX_GRID_LINES
    assert str(step).rstrip("0") in {"1", "2", "5"}
    assert step == 1 or highest > step * MAX_GRID_LINES / 2.5


@pytest.mark.parametrize(
    ("count", "step", "text"),
    [
        (0, 1, "0"),
        (0, 1000, "0"),
        (1500, 500, "1,500"),
        (20_000, 5000, "20k"),
        (3_000_000, 1_000_000, "3M"),
    ],
)
def test_label_of_a_line_is_short(count: int, step: int, text: str) -> None:
    assert format_count(count, step) == text


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_of_outcomes_differ_for_every_colour_vision(vision: str) -> None:
    colours = [_lab(_perceived(colour, vision)) for colour in COLOURS.values()]
    differences = (math.dist(one, other) for one, other in combinations(colours, 2))
    assert min(differences) > MIN_COLOUR_DIFFERENCE


def _perceived(colour: str, vision: str) -> list[float]:
    """Return a colour as linear RGB, as perceived with a colour vision."""
    linear = [
        (c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4
        for c in ImageColor.getrgb(colour)
    ]
    return [
        min(1, max(0, sum(factor * c for factor, c in zip(row, linear, strict=True))))
        for row in VISIONS[vision]
    ]


def _lab(rgb: list[float]) -> tuple[float, float, float]:
    """Return CIE L*a*b* of linear sRGB, under D65."""
    red, green, blue = rgb
    x, y, z = (
        t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116
        for t in (
            (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505,
            0.2126 * red + 0.7152 * green + 0.0722 * blue,
            (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089,
        )
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)
