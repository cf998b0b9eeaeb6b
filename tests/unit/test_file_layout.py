"""Finding the delimiter and the columns of a file in its first lines."""

import pytest

from mailer.client.columns import CLIENT_FILE_COLUMNS
from mailer.client.field_columns import REASON_COLUMN
from mailer.client.layout import Layout, LayoutError, detect_layout
from mailer.opt_out.importing import OPT_OUT_COLUMNS

ANNA, BORIS = "79161234567", "+7 (903) 765-43-21"


def layout_of(*lines: str) -> Layout:
    return detect_layout(lines, CLIENT_FILE_COLUMNS)


@pytest.mark.parametrize(
    ("header", "fields"),
    [
        ("phone,operator_code,tag,time_zone", ("phone", "operator_code", "tag", "time_zone")),
        ("Time Zone,TAG, Phone ", ("time_zone", "tag", "phone")),
        ("timezone,label,phone number", ("time_zone", "tag", "phone")),
        ("Телефон,Код оператора,Теги,Часовой пояс", ("phone", "operator_code", "tag", "time_zone")),
        (
            "часовой_пояс,МеткИ,номер  телефона,код мобильного оператора",
            ("time_zone", "tag", "phone", "operator_code"),
        ),
        ("№ телефона,тэг", ("phone", "tag")),
        ("Мобильный тел.,метки", ("phone", "tag")),
        ("\ufeffphone\u200b,\u00a0tag", ("phone", "tag")),
        ("Имя,phone,город", ("", "phone", "")),
    ],
)
def test_a_header_may_have_english_or_russian_names_in_any_order(
    header: str, fields: tuple[str, ...]
) -> None:
    assert layout_of(header).fields == fields


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "lines",
    [
        ["phone|tag", f"{ANNA}|vip"],
        ["имя|телефон|метка", f"Анна|{ANNA}|a"],
        [f"{ANNA}|vip", f"{BORIS}|"],
        ['phone|"tag, tags; and\ttags"', f"{ANNA}|vip"],
        ["phone|comment, and more; much more", f"{ANNA}|one, two; three"],
        ["Абонент|Город, улица; дом", f"{ANNA}|Москва, Тверская; 1"],
        [f"{ANNA}|Moscow, London; Paris, Rome", f"{BORIS}|x"],
    ],
)
def test_the_delimiter_is_the_one_with_which_names_and_phones_are_found(
    lines: list[str], delimiter: str
) -> None:
    layout = layout_of(*(line.replace("|", delimiter) for line in lines))
    assert layout.delimiter == delimiter
    assert "phone" in layout.fields


@pytest.mark.parametrize(
    ("lines", "fields"),
    [
        ([ANNA], ("phone",)),
        ([f"{ANNA},916,vip,Europe/Moscow"], ("phone", "operator_code", "tag", "time_zone")),
        ([f"{ANNA},,vip,"], ("phone", "operator_code", "tag", "time_zone")),
        ([f"{ANNA},vip"], ("phone", "tag")),
        ([f"{ANNA},Europe/Moscow"], ("phone", "time_zone")),
        ([f"{ANNA},916,Europe/Moscow"], ("phone", "operator_code", "time_zone")),
        ([f"Анна,{BORIS},vip"], ("", "phone", "tag")),
        ([f"Europe/Moscow,Анна,{BORIS}"], ("time_zone", "", "phone")),
        ([f"{ANNA},vip,{'x' * 65}"], ("phone", "tag", "")),
        (["8916,a", f"{ANNA},b", f"{BORIS},c"], ("phone", "tag")),  # the first phone is wrong
        (["7,9161E+10;a", f"{ANNA};b"], ("phone", "tag")),
        ([f"{ANNA};mobile"], ("phone", "tag")),  # not a header, though it has a name of a column
    ],
)
def test_without_a_header_columns_are_found_by_their_values(
    lines: list[str], fields: tuple[str, ...]
) -> None:
    layout = layout_of(*lines)
    assert not layout.has_header
    assert layout.fields == fields


def test_a_header_without_a_name_for_the_phone_has_it_found_by_its_values() -> None:
    layout = layout_of("Клиент;Абонент;Метка", f"Анна;{ANNA};vip", f"Борис;{BORIS};")
    assert layout.has_header
    assert layout.fields == ("", "phone", "tag")
    assert layout.examples == ("Анна", ANNA, "vip")


def test_a_header_without_any_phone_is_an_error() -> None:
    layout = layout_of("Клиент;Метка", "Анна;vip")
    assert [error.field for error in layout.errors(CLIENT_FILE_COLUMNS)] == ["phone"]


def test_two_columns_of_the_same_field_are_an_error() -> None:
    layout = layout_of("телефон;мобильный", f"{ANNA};{BORIS}")
    assert [error.message for error in layout.errors(CLIENT_FILE_COLUMNS)] == [
        "appears more than once"
    ]


def test_ignored_columns_are_named_but_a_phone_is_never_shown() -> None:
    layout = layout_of(f"phone,Город,,{ANNA},{REASON_COLUMN}", f"{BORIS},2,3,4,5")
    assert layout.ignored == ["Город", "column 3", "column 4"]


def test_chosen_fields_must_fit_the_file() -> None:
    layout = layout_of("a,b,c")
    chosen = layout.with_fields(("tag", "", "phone"), CLIENT_FILE_COLUMNS, named_too=True)
    assert chosen.fields == ("tag", "", "phone")
    for wrong in (("phone",), ("phone", "tag", "Name"), ("",) * 4):
        with pytest.raises(LayoutError):
            layout.with_fields(wrong, CLIENT_FILE_COLUMNS, named_too=True)


def test_columns_of_opt_outs_are_found_too() -> None:
    named = detect_layout(["Дата отписки;Телефон"], OPT_OUT_COLUMNS)
    assert named.fields == ("opted_out_at", "phone")
    unnamed = detect_layout([f"2025-01-15T09:00:00Z;{ANNA}"], OPT_OUT_COLUMNS)
    assert unnamed.fields == ("opted_out_at", "phone")
