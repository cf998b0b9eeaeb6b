"""The daily report as text and as HTML for mail."""

from collections.abc import Iterator
from datetime import datetime
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mailer import statuses
from mailer.daily_report.report import DailyReport
from mailer.statuses import OUTCOMES, MessageCounts, OutcomeCounts

MIN_WIDTH = 1.0  # percent of a whole bar
"""Width of the part of a bar for an outcome that occurs, so that a few messages are visible."""


def render_text(report: DailyReport) -> str:
    """Return the report as plain text, for the terminal and for mail."""
    return _templates().get_template("daily.txt").render(report=report)


def render_html(report: DailyReport) -> str:
    """Return the report as HTML for mail programs.

    It has no images: its bars are table cells, which every common mail program shows at once.
    """
    return _templates().get_template("daily.html").render(report=report)


def bar_widths(counts: OutcomeCounts | MessageCounts, whole: int) -> Iterator[tuple[str, float]]:
    """Yield the outcomes that occur, each with the width of its part of a bar, in percent.

    `whole` is the number of messages of a bar of full width, at least the sum of the outcomes. Each
    part gets `MIN_WIDTH`; the remaining width is divided in proportion to the counts. So all parts
    together fit into the bar.
    """
    occurring = {name: count for name in OUTCOMES if (count := getattr(counts, name))}
    remaining_width = 100 - MIN_WIDTH * len(occurring)
    for name, count in occurring.items():
        yield name, MIN_WIDTH + remaining_width * count / whole


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("mailer.daily_report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["number"] = "{:,}".format
    templates.filters["moment"] = "{:%Y-%m-%d %H:%M}".format
    templates.filters["hour"] = _hour
    templates.filters["percent"] = _percent
    templates.globals["statuses"] = statuses
    templates.globals["bar_widths"] = bar_widths
    return templates


def _hour(start: datetime) -> str:
    """Return the start of an hour as text.

    When the clocks are set back, an hour occurs twice; the second one has the suffix "again".
    """
    return f"{start:%H:%M}{' again' if start.fold else ''}"


def _percent(part: int, whole: int) -> str:
    """Return a share with one decimal; 100% only for the whole and 0% only for zero."""
    if part in (0, whole):
        return f"{100 * part // max(whole, 1)}%"
    return f"{min(99.9, max(0.1, 100 * part / whole)):.1f}%"
