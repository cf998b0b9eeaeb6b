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

every_look = pytest.mark.parametrize(
    "look", [DESK, RUSSIAN, PHONE, DARK], ids=["desk", "russian", "phone", "dark"]
)
