"""The chart in a daily report: outcomes of messages by hour.

It is a PNG image, because mail programs do not show SVG.
"""

from collections.abc import Sequence
from io import BytesIO
from math import ceil

import msgspec
from PIL import Image, ImageDraw, ImageFont

from mailer.statistics.model import Bucket

COLOURS = {
    "delivered": "#12806a",
    "undelivered": "#c2371f",
    "unknown": "#f0b429",
    "cancelled": "#b4bcc6",
}
"""Colours of outcomes, from the bottom of a bar to its top.

They differ in hue and lightness, so that colour-blind users can distinguish them."""
WIDTH, HEIGHT = 592, 320
"""Size of the chart as shown, in CSS pixels."""

PIXEL_SCALE = 2
"""Image pixels per shown pixel in each direction, for high-resolution screens."""
LEFT, RIGHT, TOP, BOTTOM = (
    60 * PIXEL_SCALE,
    (WIDTH - 16) * PIXEL_SCALE,
    76 * PIXEL_SCALE,
    (HEIGHT - 66) * PIXEL_SCALE,
)
"""Edges of the plot area, in image pixels."""
INK, FAINT, GRID, GROUND = "#1f2937", "#5b6675", "#e3e7ec", "#ffffff"
FONT_SIZE = 16
"""Shown pixels; large, because on a phone the chart is half as wide."""
LABEL_INTERVAL = 3
"""Hours between labels of the time axis."""
MAX_GRID_LINES = 5  # without the base line
LINE_STEPS = (1, 2, 5)  # times a power of ten
MIN_BAR_HEIGHT = 2 * PIXEL_SCALE
"""Image pixels, so that a few messages among many are visible."""


def draw(hours: Sequence[Bucket], time_zone: str) -> bytes:
    """Return the chart of a day's hours as a PNG."""
    image = Image.new("RGB", (WIDTH * PIXEL_SCALE, HEIGHT * PIXEL_SCALE), GROUND)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(FONT_SIZE * PIXEL_SCALE)
    _draw_legend(pen, font)
    highest = max((sum(_counts(hour).values()) for hour in hours), default=0)
    step = line_step(highest)
    lines = max(1, ceil(highest / step))
    for line in range(lines + 1):
        y = BOTTOM - (BOTTOM - TOP) * line // lines
        pen.line((LEFT, y, RIGHT, y), fill=FAINT if line == 0 else GRID, width=PIXEL_SCALE)
        pen.text(
            (LEFT - 8 * PIXEL_SCALE, y), format_count(line * step, step), FAINT, font, anchor="rm"
        )
    _draw_bars(pen, hours, lines * step)
    _draw_hour_labels(pen, font, hours)
    pen.text((LEFT, TOP - 14 * PIXEL_SCALE), "messages per hour", FAINT, font, anchor="ls")
    centre = (LEFT + RIGHT) // 2
    pen.text((centre, (HEIGHT - 14) * PIXEL_SCALE), time_zone, FAINT, font, anchor="ms")
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def line_step(highest: int) -> int:
    """Return the number of messages between two grid lines: 1, 2 or 5 times a power of ten.

    At most `MAX_GRID_LINES` such steps cover `highest`.
    """
    power = 1
    while True:
        for step in LINE_STEPS:
            if highest <= step * power * MAX_GRID_LINES:
                return step * power
        power *= 10


def format_count(count: int, step: int) -> str:
    """Return the label of a grid line, such as 500, 20k or 3M; `step` decides the unit."""
    for unit, suffix in ((1_000_000, "M"), (1_000, "k")):
        if count and step >= unit:
            return f"{count // unit:,}{suffix}"
    return f"{count:,}"


def _counts(hour: Bucket) -> dict[str, int]:
    return msgspec.structs.asdict(hour.messages)


def _draw_legend(
    pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    x, y, size = LEFT, 22 * PIXEL_SCALE, 12 * PIXEL_SCALE
    for name, colour in COLOURS.items():
        pen.rectangle((x, y - size // 2, x + size, y + size // 2), colour)
        pen.text((x + size + 6 * PIXEL_SCALE, y), name, INK, font, anchor="lm")
        x += size + 28 * PIXEL_SCALE + int(font.getlength(name))


def _draw_bars(pen: ImageDraw.ImageDraw, hours: Sequence[Bucket], max_count: int) -> None:
    for index, hour in enumerate(hours):
        x = _bar_edge(index, len(hours)) + 2 * PIXEL_SCALE
        end = _bar_edge(index + 1, len(hours)) - 2 * PIXEL_SCALE
        y = BOTTOM - PIXEL_SCALE
        for name, colour in COLOURS.items():
            if count := _counts(hour)[name]:
                height = max(MIN_BAR_HEIGHT, (BOTTOM - TOP) * count // max_count)
                pen.rectangle((x, y - height + 1, end, y), colour)
                y -= height


def _draw_hour_labels(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    hours: Sequence[Bucket],
) -> None:
    """Label the start of every `LABEL_INTERVAL`th hour, in the report's time zone."""
    for index, hour in enumerate(hours):
        if hour.start.hour % LABEL_INTERVAL == 0 and hour.start.minute == 0 and not hour.start.fold:
            x = _bar_edge(index, len(hours))
            pen.line((x, BOTTOM, x, BOTTOM + 5 * PIXEL_SCALE), fill=FAINT, width=PIXEL_SCALE)
            pen.text(
                (x, BOTTOM + 22 * PIXEL_SCALE), f"{hour.start:%H:%M}", FAINT, font, anchor="ms"
            )


def _bar_edge(index: int, count: int) -> int:
    """Return the left edge of a bar, in image pixels."""
    return LEFT + (RIGHT - LEFT) * index // count
