"""Common passwords are rejected, and long uncommon ones are accepted."""

import pytest

from mailer.access.credentials import MIN_PASSWORD_LENGTH, find_weakness


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
def test_common_password_or_a_variant_of_it_is_rejected(password: str) -> None:
    assert len(password) >= MIN_PASSWORD_LENGTH  # so it is not rejected for its length
    [error] = find_weakness("ann", password)
    assert error.field == "password"
    assert "too common" in error.message


@pytest.mark.parametrize(
    "password",
    [
        *("correct horse battery", "another long one", "the third long one", "Ночь тиха и снежна"),
        *("x7Kq-mm2P-9sLa", "four words as a phrase", "735190248816", "dragon under monkeys"),
    ],
)
def test_uncommon_password_is_accepted(password: str) -> None:
    assert find_weakness("ann", password) == []


def test_password_made_of_the_users_name_is_rejected() -> None:
    for password in ("annabelle_smith", "Annabelle_Smith2024", "2024annabelle_smith!"):
        [error] = find_weakness("annabelle_smith", password)
        assert "name" in error.message


def test_very_long_password_is_checked_without_delay() -> None:
    repeated = "ab" * 512
    almost_repeated = "abcdefg" * 146 + "h"  # a naive search for its unit would take long
    assert find_weakness("ann", repeated)
    assert find_weakness("ann", almost_repeated) == []
