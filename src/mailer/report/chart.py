"""The picture of a day in its report: what became of messages, by the hour.

A PNG, because mail programs show no SVG.
"""

from collections.abc import Sequence
from io import BytesIO
from math import ceil

import msgspec
from PIL import Image, ImageDraw, ImageFont

from mailer.report.model import Bucket

COLOURS = {
    "delivered": "#12806a",
    "undelivered": "#c2371f",
    "unknown": "#f0b429",
    "cancelled": "#b4bcc6",
}
"""Of each outcome, the first lowest in a bar; they differ in hue and in lightness, so that nobody
needs to tell red from green."""
WIDTH, HEIGHT = 592, 320
"""Pixels at which the picture is shown; it has twice as many each way, for fine screens."""

SCALE = 2
LEFT, RIGHT, TOP, BOTTOM = 60 * SCALE, (WIDTH - 16) * SCALE, 76 * SCALE, (HEIGHT - 66) * SCALE
"""Edges of the bars' field."""
INK, FAINT, GRID, GROUND = "#1f2937", "#5b6675", "#e3e7ec", "#ffffff"
TEXT = 16
"""Pixels of its letters: on a phone the picture is half as wide."""
LABELLED = 3
"""Hours from one label to the next."""
MOST_LINES = 5
STEPS = (1, 2, 5)
THINNEST = 2 * SCALE
"""Pixels of a few messages among many, which are to be seen all the same."""


def draw(hours: Sequence[Bucket], time_zone: str) -> bytes:
    """Return the picture of a day's hours as a PNG."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), GROUND)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(TEXT * SCALE)
    _legend(pen, font)
    highest = max((sum(_counts(hour).values()) for hour in hours), default=0)
    step = line_step(highest)
    lines = max(1, ceil(highest / step))
    for line in range(lines + 1):
        y = BOTTOM - (BOTTOM - TOP) * line // lines
        pen.line((LEFT, y, RIGHT, y), fill=FAINT if line == 0 else GRID, width=SCALE)
        pen.text((LEFT - 8 * SCALE, y), short(line * step, step), FAINT, font, anchor="rm")
    _bars(pen, hours, lines * step)
    _hours(pen, font, hours)
    pen.text((LEFT, TOP - 14 * SCALE), "messages an hour", FAINT, font, anchor="ls")
    centre = (LEFT + RIGHT) // 2
    pen.text((centre, (HEIGHT - 14) * SCALE), time_zone, FAINT, font, anchor="ms")
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def line_step(highest: int) -> int:
    """Return how many messages lie between two lines: a round number, at most five times."""
    power = 1
    while True:
        for step in STEPS:
            if highest <= step * power * MOST_LINES:
                return step * power
        power *= 10


def short(count: int, step: int) -> str:
    """Return the count of a line in few characters: 500, or 20k and 3M by what `step` is."""
    for unit, sign in ((1_000_000, "M"), (1_000, "k")):
        if count and step >= unit:
            return f"{count // unit:,}{sign}"
    return f"{count:,}"


def _counts(hour: Bucket) -> dict[str, int]:
    return msgspec.structs.asdict(hour.messages)


def _legend(pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    x, y, size = LEFT, 22 * SCALE, 12 * SCALE
    for name, colour in COLOURS.items():
        pen.rectangle((x, y - size // 2, x + size, y + size // 2), colour)
        pen.text((x + size + 6 * SCALE, y), name, INK, font, anchor="lm")
        x += size + 28 * SCALE + int(font.getlength(name))


def _bars(pen: ImageDraw.ImageDraw, hours: Sequence[Bucket], top: int) -> None:
    for place, hour in enumerate(hours):
        x = _edge(place, len(hours)) + 2 * SCALE
        end = _edge(place + 1, len(hours)) - 2 * SCALE
        y = BOTTOM - SCALE
        for name, colour in COLOURS.items():
            if count := _counts(hour)[name]:
                height = max(THINNEST, (BOTTOM - TOP) * count // top)
                pen.rectangle((x, y - height + 1, end, y), colour)
                y -= height


def _hours(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    hours: Sequence[Bucket],
) -> None:
    """Mark where every third hour begins, on the clock of the day's zone."""
    for place, hour in enumerate(hours):
        if hour.start.hour % LABELLED == 0 and hour.start.minute == 0 and not hour.start.fold:
            x = _edge(place, len(hours))
            pen.line((x, BOTTOM, x, BOTTOM + 5 * SCALE), fill=FAINT, width=SCALE)
            pen.text((x, BOTTOM + 22 * SCALE), f"{hour.start:%H:%M}", FAINT, font, anchor="ms")


def _edge(place: int, count: int) -> int:
    return LEFT + (RIGHT - LEFT) * place // count
