"""The picture of a day."""

import math
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from mailer.report.chart import COLOURS, HEIGHT, MOST_LINES, WIDTH, draw, line_step, short
from mailer.report.model import Bucket, OutcomeCounts

MIDNIGHT = datetime(2030, 1, 15, tzinfo=UTC)
# Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision
# deficiency", 2009, at full severity; on linear RGB
SIGHTS = {
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
TOLD_APART = 25
"""CIE 1976 difference; two and a half is what a careful eye sees side by side."""


def a_day(hours: int, **counts: int) -> list[Bucket]:
    """A day with the same outcomes in each hour."""
    return [Bucket(MIDNIGHT + timedelta(hours=n), OutcomeCounts.of(**counts)) for n in range(hours)]


def picture(hours: list[Bucket]) -> Image.Image:
    return Image.open(BytesIO(draw(hours, "Europe/Moscow"))).convert("RGB")


def area(image: Image.Image, name: str) -> int:
    """Pixels of the colour of an outcome."""
    found = image.getcolors(image.width * image.height)
    assert found is not None
    return {colour: count for count, colour in found}.get(ImageColor.getrgb(COLOURS[name]), 0)


@pytest.mark.parametrize("hours", [0, 23, 24, 25])
def test_picture_is_a_png_of_twice_the_size_it_is_shown_at(hours: int) -> None:
    png = draw(a_day(hours, delivered=1), "Europe/Moscow")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert Image.open(BytesIO(png)).size == (2 * WIDTH, 2 * HEIGHT)


def test_area_of_an_outcome_grows_with_its_count() -> None:
    empty = picture(a_day(24))
    image = picture(a_day(24, delivered=300, undelivered=100))
    drawn = {name: area(image, name) - area(empty, name) for name in COLOURS}
    assert drawn["unknown"] == drawn["cancelled"] == 0
    assert drawn["delivered"] / drawn["undelivered"] == pytest.approx(3, rel=0.05)


def test_one_failure_among_a_million_is_seen() -> None:
    empty = picture(a_day(24))
    image = picture(a_day(24, delivered=1_000_000, undelivered=1))
    assert area(image, "undelivered") > area(empty, "undelivered")


@given(st.integers(0, 10**12))
def test_lines_are_at_most_five_and_their_steps_round(highest: int) -> None:
    step = line_step(highest)
    assert highest <= step * MOST_LINES
    assert str(step).rstrip("0") in {"1", "2", "5"}
    assert step == 1 or highest > step * MOST_LINES / 2.5


@pytest.mark.parametrize(
    ("count", "step", "said"),
    [
        (0, 1, "0"),
        (0, 1000, "0"),
        (1500, 500, "1,500"),
        (20_000, 5000, "20k"),
        (3_000_000, 1_000_000, "3M"),
    ],
)
def test_count_of_a_line_is_short(count: int, step: int, said: str) -> None:
    assert short(count, step) == said


@pytest.mark.parametrize("sight", SIGHTS)
def test_outcomes_are_told_apart_whatever_colours_one_sees(sight: str) -> None:
    seen = [_lab(_seen(colour, sight)) for colour in COLOURS.values()]
    assert min(math.dist(one, other) for one, other in combinations(seen, 2)) > TOLD_APART


def _seen(colour: str, sight: str) -> list[float]:
    linear = [
        (c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4
        for c in ImageColor.getrgb(colour)
    ]
    return [
        min(1, max(0, sum(part * of for part, of in zip(row, linear, strict=True))))
        for row in SIGHTS[sight]
    ]


def _lab(rgb: list[float]) -> tuple[float, float, float]:
    """CIE L*a*b* of linear sRGB, under D65."""
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
