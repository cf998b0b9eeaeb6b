"""Who looks at a page: language, clock, screen and colours."""

import msgspec
import pytest


class Look(msgspec.Struct, frozen=True, kw_only=True):
    locale: str = "en-US"
    time_zone: str = "Europe/Moscow"
    width: int = 1280
    height: int = 800
    phone: bool = False
    """A finger instead of a mouse, and a browser that heeds `<meta name="viewport">`."""
    dark: bool = False


DESK = Look()
RUSSIAN = Look(locale="ru-RU")
PHONE = Look(width=390, height=844, phone=True)
DARK = Look(dark=True)
NARROW = Look(locale="ru-RU", width=390, height=844, phone=True, dark=True)
"""Russian on a phone in the dark: the longest words on the smallest screen."""

every_look = pytest.mark.parametrize(
    "look", [DESK, NARROW], ids=["desk", "russian on a phone in the dark"]
)
"""Each language, screen and set of colours once; each look more takes as long as the first."""
