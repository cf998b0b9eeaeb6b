"""Common passwords are refused, and long ones of one's own are not."""

import pytest

from mailer.access.passwords import SHORTEST, too_easy


@pytest.mark.parametrize(
    "password",
    [
        *("qwertyuiop12", "Password1234", "PASSWORD!!!!", "passwordpassword", "123456789012"),
        *("000000000000", "abcdefghijkl", "abcabcabcabc", "1qaz2wsx3edc", "1q2w3e4r5t6y"),
        *("dragon123456", "qwertyqwerty", "987654321098", "letmein12345", "12345letmein"),
        *("\uff50\uff41\uff53\uff53\uff57\uff4f\uff52\uff441234", "monkeymonkey", "aaaaaaaaaaaa"),
        *("йцукенгшщзхъ", "Пароль123456", "привет202020", "Юлечка!юлечка"),  # noqa: RUF001
        *("password\u200b1234", "qwerty qwerty", "dragon-2024-dragon", "Administrator1"),
        *("passwordpassword1", "password password1", "letmein letmein", "adminadmin12"),
        *("111111222222", "aaaaaaaaaaaab", "abcdabcdabcd1", "iloveyou1234567"),
        *("dragon 8472 0193 55", "890123456789"),
    ],
)
def test_a_common_password_or_nearly_one_is_refused(password: str) -> None:
    assert len(password) >= SHORTEST
    [error] = too_easy("ann", password)
    assert (error.field, "too common" in error.message) == ("password", True)


@pytest.mark.parametrize(
    "password",
    [
        *("correct horse battery", "another long one", "the third long one", "Ночь тиха и снежна"),
        *("x7Kq-mm2P-9sLa", "four words as a phrase", "735190248816", "dragon under monkeys"),
    ],
)
def test_a_password_of_ones_own_is_taken(password: str) -> None:
    assert too_easy("ann", password) == []


def test_a_name_with_digits_around_it_is_not_a_password() -> None:
    for password in ("annabelle_smith", "Annabelle_Smith2024", "2024annabelle_smith!"):
        [error] = too_easy("annabelle_smith", password)
        assert "name" in error.message


def test_a_very_long_password_is_looked_at_quickly_enough_to_answer() -> None:
    assert too_easy("ann", "ab" * 512)
    assert too_easy("ann", "abcdefg" * 146 + "h") == []
