"""Why a text is sent in Unicode, as the pages say it."""

import pytest

from mailer.admin.mailings.text_preview import RUSSIAN, preview_text


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Зима", RUSSIAN),
        ("Заказ № 7 готов. Ёлка, 50 %", RUSSIAN),
        ("Скидка в Nike до пятницы", RUSSIAN),
        ("Ваше замовлення їде", "Cyrillic text"),
        ("παραγγελία έτοιμη", "Greek text"),
        ("注文ができました", "Japanese text"),
        ("您的订单", "Chinese text"),
        ("طلبك جاهز", "Arabic text"),
    ],
)
def test_a_text_of_another_script_is_called_by_its_script(text: str, script: str) -> None:
    assert preview_text(text).script == script


@pytest.mark.parametrize(
    ("text", "position", "name"),
    [
        ("Half pri\u0441e.", 9, "U+0441 CYRILLIC SMALL LETTER ES"),
        ("Now\u200b and th\u200ben", 4, "U+200B ZERO WIDTH SPACE"),
        ("Sale 🎉", 6, "U+1F389 PARTY POPPER"),
    ],
)
def test_a_character_is_named_if_the_rest_fits_into_the_standard_alphabet(
    text: str, position: int, name: str
) -> None:
    preview = preview_text(text)
    assert preview.script is None
    assert (preview.unicode_position, preview.unicode_character_name) == (position, name)


def test_no_character_is_named_if_several_need_unicode() -> None:
    preview = preview_text("Half “price”…")
    assert preview.script is None
    assert preview.unicode_position == 0
    assert preview.unicode_characters == 3


@pytest.mark.parametrize("text", ["", "Half price", "ΔΦ €", "12 345"])
def test_a_text_in_the_standard_alphabet_has_no_reason(text: str) -> None:
    preview = preview_text(text)
    assert preview.script is None
    assert preview.unicode_characters == preview.unicode_position == 0
