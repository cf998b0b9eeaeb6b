"""The columns of imported files: their names in headers, and the values that they may have."""

from collections.abc import Callable

import msgspec

from mailer.client.model import known_zones
from mailer.client.phone import STORED_FORM, normalize_phone
from mailer.text import strip_invisible

OPERATOR_CODE_LENGTH = 3
MAX_TAG_LENGTH = 64
MIN_PHONE_DIGITS = 7
"""A text with this many digits may be a phone."""


class Column(msgspec.Struct, frozen=True):
    """A column that a file may have."""

    name: str
    """The name of the field, which is also a name of the column."""
    aliases: frozenset[str]
    """Other names of the column, as `column_key` returns them."""
    accepts: Callable[[str], bool]
    """Whether a value, without blanks around it, may be in the column."""
    is_distinctive: bool = True
    """Whether hardly any other column has values that this one accepts."""

    def is_named(self, written: str) -> bool:
        """Return whether a name in a header is one of this column."""
        key = column_key(written)
        return key == column_key(self.name) or key in self.aliases


def column_key(written: str) -> str:
    """Return the form in which names of columns are compared: small letters and digits alone."""
    text = strip_invisible(written).casefold().replace("ё", "е")  # noqa: RUF001  # Cyrillic
    return "".join(filter(str.isalnum, text))


def is_phone(text: str) -> bool:
    """Return whether a text is a phone in any usual form."""
    return STORED_FORM.fullmatch(normalize_phone(text)) is not None


def may_be_phone(text: str) -> bool:
    """Return whether a text has so many digits that it may identify somebody."""
    return sum(map(str.isdigit, text)) >= MIN_PHONE_DIGITS


def _is_operator_code(text: str) -> bool:
    return len(text) == OPERATOR_CODE_LENGTH and text.isascii() and text.isdigit()


def header_names(*names: str) -> frozenset[str]:
    """Return the `aliases` of a column with these names in headers."""
    return frozenset(map(column_key, names))


PHONE = Column(
    "phone",
    header_names(
        *("phone number", "mobile", "mobile phone", "mobile number", "cell", "cell phone"),
        *("telephone", "telephone number", "tel", "phone no", "msisdn"),
        *("телефон", "номер телефона", "тел", "№ телефона", "телефонный номер"),
        *(
            "мобильный",
            "мобильный телефон",
            "моб. телефон",
            "моб. тел.",
            "моб.",
            "мобильный тел.",
            "мобильный номер",
        ),
        *("номер мобильного", "номер мобильного телефона", "сотовый", "сотовый телефон"),
        *("контактный телефон", "телефон клиента", "phones", "телефоны"),
    ),
    is_phone,
)
TIME_ZONE = Column(
    "time_zone",
    header_names(
        *("tz", "time zone name", "часовой пояс", "час. пояс", "часовая зона"),
        *("временная зона", "таймзона", "тайм-зона"),
    ),
    lambda text: text in known_zones(),
)
CLIENT_FILE_COLUMNS = (
    PHONE,
    Column(
        "operator_code",
        header_names(
            *("mobile operator code", "operator prefix", "def code", "def"),
            *("код оператора", "код мобильного оператора", "код опер.", "def-код", "код def"),
        ),
        _is_operator_code,
    ),
    Column(
        "tag",
        header_names("tags", "label", "labels", "тег", "теги", "тэг", "тэги", "метка", "метки"),
        lambda text: len(text) <= MAX_TAG_LENGTH,
        is_distinctive=False,
    ),
    TIME_ZONE,
)
"""The columns of a file of clients. The first one is required."""
