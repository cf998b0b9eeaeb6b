"""Stop and start words: which replies are one of them; the sender of an answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.reply.rules import ReplyRules, sender_of_answer
from mailer.settings import Settings

RULES = ReplyRules.of(Settings())


@pytest.mark.parametrize(
    "text",
    [
        "STOP",
        "stop",
        " Stop. ",
        "«СТОП!»",
        "стоп",
        "\tСтоп\n",  # noqa: RUF001  # a word of Russian
        "STOP 🙏",
        "s\u200btop",  # with an invisible space
        "\ufeffstop",
        "\uff53\uff54\uff4f\uff50",  # full-width letters
        "CTO\u041f",  # three Latin letters and a Cyrillic one
        "S\u0422\u041e\u0420",  # a Latin letter and three Cyrillic ones
        "ОТПИСАТЬСЯ",
        "отписаться!!!",
        "stop   all",
        "Unsubscribe",
    ],
)
def test_a_stop_word_opts_out(text: str) -> None:
    assert RULES.action_of(text) == "opted_out"


@pytest.mark.parametrize("text", ["START", "старт", "Unstop.", "ПОДПИСАТЬСЯ"])
def test_a_start_word_opts_in(text: str) -> None:
    assert RULES.action_of(text) == "opted_in"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "STOP 12345",
        "don't stop",
        "stop it",
        "S T O P",
        "stopp",
        "YES",
        "да",
        "СТОПСТОП",
        "STOP " + "!" * 1_000,
    ],
)
def test_any_other_text_does_nothing(text: str) -> None:
    assert RULES.action_of(text) is None


@pytest.mark.parametrize(("word", "text"), [("ОТЁЛ", "отел"), ("ОТЕЛ", "Отёл")])
def test_both_spellings_of_a_russian_letter_are_the_same(word: str, text: str) -> None:
    assert ReplyRules.of(Settings(stop_words=word)).action_of(text) == "opted_out"


def test_own_words_replace_the_default_ones() -> None:
    rules = ReplyRules.of(Settings(stop_words="arrêt, halt", start_words="los"))
    assert [rules.action_of(text) for text in ("Arrêt", "HALT!", "Los", "stop", "start")] == [
        *("opted_out", "opted_out", "opted_in"),
        *(None, None),
    ]


@thorough
@given(st.text())
def test_no_text_raises_an_error_and_few_do_something(text: str) -> None:
    action = RULES.action_of(text)
    assert action is None or len(text) <= 100


@pytest.mark.parametrize(
    ("recipient", "mailing_sender", "expected"),
    [
        (None, None, "Acme"),
        (None, "Shop", "Shop"),
        ("15005550006", None, "Acme"),
        ("15005550006", "+15005550006", "+15005550006"),
        ("15005550006", "Shop", "Shop"),
        ("Acme", "Shop", "Acme"),
    ],
)
def test_an_answer_has_the_sender_of_the_message_that_was_replied_to(
    recipient: str | None, mailing_sender: str | None, expected: str
) -> None:
    assert sender_of_answer(recipient, mailing_sender, "Acme") == expected
