"""The states of the browser in which pages are tested: language, time zone, screen and colors."""

import msgspec
import pytest


class PageState(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the browser; by default English on a desktop. Sizes are in pixels."""

    locale: str = "en-US"
    time_zone: str = "Europe/Moscow"
    width: int = 1280
    height: int = 800
    phone: bool = False
    """Touch instead of a mouse, and a browser that respects `<meta name="viewport">`."""
    dark: bool = False
    """Whether the user prefers dark colors."""


DESK = PageState()
RUSSIAN = PageState(locale="ru-RU")
PHONE = PageState(width=390, height=844, phone=True)
DARK = PageState(dark=True)
NARROW = PageState(locale="ru-RU", width=390, height=844, phone=True, dark=True)
"""Russian on a phone with dark colors: the longest words on the smallest screen."""

every_page_state = pytest.mark.parametrize(
    "page_state", [DESK, NARROW], ids=["desktop", "russian on a phone, dark"]
)
"""Runs a test in two states, which together cover both languages, screens and color schemes."""
