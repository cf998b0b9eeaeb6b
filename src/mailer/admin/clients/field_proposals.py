"""Names of fields that the preview of an import proposes for the columns of a file."""

import re
import unicodedata
from collections.abc import Collection, Sequence

from mailer.client.columns import column_key, may_be_phone
from mailer.client.field_columns import ExtraColumns, column_of_header, field_column, field_name
from mailer.client.fields import MAX_CLIENT_FIELD_NAME

COMMON_NAMES = {
    column_key(written): name
    for name, headers in {
        "name": ("имя", "имя клиента", "first name", "firstname", "client name", "customer name"),
        "full_name": ("фио", "полное имя", "full name"),
        "last_name": ("фамилия", "surname", "last name"),
        "patronymic": ("отчество", "middle name"),
        "salutation": ("обращение", "salutation"),
        "city": ("город", "city"),
        "address": ("адрес", "address"),
        "birthday": ("дата рождения", "день рождения", "birthday", "birth date", "date of birth"),
        "bonus": ("бонус", "бонусы", "bonuses"),
        "points": ("баллы", "points"),
        "discount": ("скидка", "discount"),
        "promo_code": ("промокод", "promo code"),
        "order_number": ("номер заказа", "order number", "order no"),
        "amount": ("сумма", "amount"),
        "debt": ("долг", "задолженность"),
        "date": ("дата", "date"),
        "time": ("время", "time"),
        "company": ("компания", "организация", "company"),
        "email": ("email", "e-mail", "почта", "эл. почта", "электронная почта"),
    }.items()
    for written in headers
}
"""Names for the most common headers, by the header's `column_key`."""
_CYRILLIC = "абвгдезийклмнопрстуфхыэ"
_LATIN = "abvgdeziyklmnoprstufhye"
_TRANSLITERATION = str.maketrans(
    dict(zip(_CYRILLIC, _LATIN, strict=True))
    | {"ё": "e", "ж": "zh", "ц": "ts", "ч": "ch", "ш": "sh", "щ": "shch"}
    | {"ъ": "", "ь": "", "ю": "yu", "я": "ya"}
)
_NOT_IN_NAMES = re.compile("[^a-z0-9]+")


def propose_names(headers: Sequence[str], fields: Sequence[str]) -> list[str]:
    """Return a name for each column of a file, all of them different.

    `headers` are the names of the columns, and `fields` what they are imported as: a column that is
    a field keeps its name.
    """
    taken = {field_name(field) for field in fields}
    proposed = []
    for number, (header, field) in enumerate(zip(headers, fields, strict=True), 1):
        name = field_name(field) or _make_unique(_name_of(header) or f"column_{number}", taken)
        taken.add(name)
        proposed.append(name)
    return proposed


def select_fields(known_names: Collection[str]) -> ExtraColumns:
    """Return a function that decides which other columns of a file become fields by themselves.

    These are columns with a valid name, with one of the most common headers, and those for which
    the name of a field is proposed that clients have already.
    """

    def select(headers: Sequence[str]) -> Sequence[str]:
        columns: list[str] = []
        for header in headers:
            name = _name_of(header)
            is_known = column_key(header) in COMMON_NAMES or name in known_names
            column = column_of_header(header) or (field_column(name) if name and is_known else "")
            columns.append("" if column in columns else column)
        return columns

    return select


def _name_of(header: str) -> str:
    """Return the name for a header in any language; "" if there is none, or it may be a phone."""
    if may_be_phone(header):
        return ""
    if common := COMMON_NAMES.get(column_key(header)):
        return common
    plain = unicodedata.normalize("NFKD", header.casefold().translate(_TRANSLITERATION))
    name = _NOT_IN_NAMES.sub("_", "".join(filter(str.isascii, plain))).strip("_")
    if name and not name[0].isalpha():
        name = f"field_{name}"
    return name[:MAX_CLIENT_FIELD_NAME].rstrip("_")


def _make_unique(name: str, taken: Collection[str]) -> str:
    """Return a name that is not taken: the given one, or with a number at its end."""
    unique, number = name, 1
    while unique in taken:
        number += 1
        ending = f"_{number}"
        unique = f"{name[: MAX_CLIENT_FIELD_NAME - len(ending)]}{ending}"
    return unique
