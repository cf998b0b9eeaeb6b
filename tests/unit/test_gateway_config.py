"""The file of gateways: all mistakes are named at once, and secrets come from elsewhere."""

from pathlib import Path

import pytest

from mailer.gateway.config import ConfiguredGateway, read_gateways
from mailer.gateway.protocol import OutgoingMessage
from mailer.gateway.toml_file import ConfigFileError

TWO = """
[[gateway]]
name = "main"
kind = "twilio"
account = "AC1"
token = "${TWILIO_TOKEN}"
sender = "ACME"
price = 0.05
operator_codes = ["916", "985"]

[[gateway]]
name = "own"
kind = "kannel"
url = "http://127.0.0.1:13013"
username = "mailer"
password = "file:secrets/kannel"
order = 2
"""


def read(folder: Path, text: str, **environ: str) -> list[ConfiguredGateway]:
    """Read a file with this text."""
    file = folder / "gateways.toml"
    file.write_text(text)
    return read_gateways(file, environ)


def mistakes(folder: Path, text: str, **environ: str) -> list[str]:
    """Return the mistakes of a file, without its name."""
    with pytest.raises(ConfigFileError) as error:
        read(folder, text, **environ)
    prefix = f"{folder / 'gateways.toml'}: "
    assert all(mistake.startswith(prefix) for mistake in error.value.mistakes)
    return [mistake.removeprefix(prefix) for mistake in error.value.mistakes]


def test_gateways_are_read_with_their_secrets(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "kannel").write_text("sesame\n")
    main, own = read(tmp_path, TWO, TWILIO_TOKEN="open")  # noqa: S106  # not a real secret
    assert main.config.token == "open"  # noqa: S105  # not a real secret
    assert main.config.operator_codes == ["916", "985"]
    assert own.config.order == 2
    message = OutgoingMessage(id=1, phone="79161234567", text="Hi")
    assert b"password=sesame&" in own.request_template({}).render(message)


def test_all_mistakes_of_all_gateways_are_named(tmp_path: Path) -> None:
    text = """
[[gateway]]
name = "Main"
kind = "twilio"
account = "AC1"
token = "${TWILIO_TOKEN}"
rte = 5
[[gateway]]
name = "a"
kind = "kannel"
order = 0
[[gateway]]
name = "a"
kind = "kannel"
url = "gateway.example"
[[gateway]]
name = "b"
kind = "twilo"
[[gateway]]
name = "c"
kind = "infobip"
token = "t"
[[gateway]]
name = "d"
kind = "telnyx"
token = "file:nowhere"
"""
    found = mistakes(tmp_path, text)
    assert [mistake.split(": ")[0] for mistake in found] == [
        "gateway[1].token",
        "gateway[1].rte",
        "gateway[1].name",
        "gateway[2].order",
        "gateway[2].username",
        "gateway[2].password",
        "gateway[3].username",
        "gateway[3].password",
        "gateway[3].url",
        "gateway[4].kind",
        "gateway[5].url",
        "gateway[6].token",
        "the name 'a' is used more than once",
    ]
    assert found[0] == "gateway[1].token: the environment variable TWILIO_TOKEN is not set or empty"
    assert found[10] == "gateway[5].url: is required for the kind infobip"


def test_key_that_the_kind_needs_is_named(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, '[[gateway]]\nname = "a"\nkind = "telnyx"\n')
    assert mistake == "gateway[1].token: is required for the kind telnyx"


def test_key_that_the_kind_does_not_use_is_named(tmp_path: Path) -> None:
    text = '[[gateway]]\nname = "a"\nkind = "telnyx"\ntoken = "t"\npassword = "p"\n'
    assert mistakes(tmp_path, text) == ["gateway[1].password: is not used by the kind telnyx"]


@pytest.mark.parametrize("text", ["", "[gateway]\n", "gateway = []\n", TWO + "[other]\n"])
def test_file_without_gateways_is_refused(tmp_path: Path, text: str) -> None:
    assert mistakes(tmp_path, text, TWILIO_TOKEN="t") == [  # noqa: S106  # not a real secret
        "must have one or more tables [[gateway]] and nothing else"
    ]


def test_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match=r"gateways\.toml: cannot be read: No such file"):
        read_gateways(tmp_path / "gateways.toml", {})


def test_secrets_are_not_in_the_text_of_an_object(tmp_path: Path) -> None:
    text = '[[gateway]]\nname = "a"\nkind = "telnyx"\ntoken = "sesame"\n'
    [gateway] = read(tmp_path, text)
    assert "sesame" not in repr(gateway)


def test_secrets_of_the_address_are_not_in_the_text_of_an_object(tmp_path: Path) -> None:
    url = "https://bob:sesame@gateway.example/?key=sesame"
    [gateway] = read(tmp_path, f'[[gateway]]\nname = "a"\nkind = "json"\nurl = "{url}"\n')
    assert "sesame" not in repr(gateway)


@pytest.mark.parametrize("value", ["${TEL-NYX}", "Bearer ${X}", "${X}${X}"])
def test_value_with_a_wrong_reference_is_refused(tmp_path: Path, value: str) -> None:
    text = f'[[gateway]]\nname = "a"\nkind = "telnyx"\ntoken = "{value}"\n'
    [mistake] = mistakes(tmp_path, text, X="1")
    assert mistake.startswith('gateway[1].token: must be "${NAME}" and nothing else')


def test_address_with_a_wrong_reference_is_named_once(tmp_path: Path) -> None:
    text = '[[gateway]]\nname = "a"\nkind = "json"\nurl = "http://${X}/"\n'
    [mistake] = mistakes(tmp_path, text, X="1")
    assert mistake.startswith('gateway[1].url: must be "${NAME}" and nothing else')


def test_variable_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    text = '[[gateway]]\nname = "a"\nkind = "telnyx"\ntoken = "${X}"\n'
    assert mistakes(tmp_path, text, X="\udcff") == [
        "gateway[1].token: the environment variable X is not UTF-8"
    ]


@pytest.mark.parametrize(
    ("kind", "keys", "mistake"),
    [
        ("exolve", 'token = "a\\nb"', "token: must be one line of printable ASCII"),
        ("exolve", 'token = "токен"', "token: must be one line of printable ASCII"),
        ("twilio", 'account = ".."\ntoken = "t"', "account: must not be .."),
        ("twilio", 'account = "a:b"\ntoken = "t"', "account: must have no colon"),
    ],
)
def test_key_that_a_request_cannot_have_is_named(
    tmp_path: Path, kind: str, keys: str, mistake: str
) -> None:
    [found] = mistakes(tmp_path, f'[[gateway]]\nname = "a"\nkind = "{kind}"\n{keys}\n')
    assert found.startswith(f"gateway[1].{mistake}")


def test_key_that_only_the_request_for_the_balance_cannot_have_is_named(tmp_path: Path) -> None:
    profile = """
title = "Test"
[request]
url = "{url}/send"
[[response]]
then = "accepted"
[balance]
url = "{url}/{account}"
path = "balance"
"""
    (tmp_path / "my.toml").write_text(profile)
    text = '[[gateway]]\nname = "a"\nkind = "my.toml"\nurl = "http://h"\naccount = "."\n'
    [mistake] = mistakes(tmp_path, text)
    assert mistake.startswith("gateway[1].account: must not be .")


def test_mistakes_of_a_profile_of_ones_own_are_those_of_the_key_kind(tmp_path: Path) -> None:
    text = '[[gateway]]\nname = "a"\nkind = "my.toml"\n'
    [mistake] = mistakes(tmp_path, text)
    assert mistake.startswith(f"gateway[1].kind: {tmp_path}/my.toml: cannot be read")
    (tmp_path / "my.toml").write_text('title = "Test"\n')
    assert [
        each.removeprefix(f"gateway[1].kind: {tmp_path}/my.toml: ")
        for each in mistakes(tmp_path, text)
    ] == [
        "request: is required",
        "response: is required",
    ]


@pytest.mark.parametrize("sender", ["", " Acme", "Acme ", "Acme\\n", "a\\nb", "Акме", "a" * 21])
def test_sender_that_no_mailing_could_have_is_refused(tmp_path: Path, sender: str) -> None:
    text = f'[[gateway]]\nname = "a"\nkind = "telnyx"\ntoken = "t"\nsender = "{sender}"\n'
    [mistake] = mistakes(tmp_path, text)
    assert mistake.startswith("gateway[1].sender: must be 1 to 20 printable ASCII characters")


@pytest.mark.parametrize("sender", ["A", "Acme & Co", "+15005550006", "a" * 20])
def test_sender_that_a_mailing_could_have_is_taken(tmp_path: Path, sender: str) -> None:
    text = f'[[gateway]]\nname = "a"\nkind = "telnyx"\ntoken = "t"\nsender = "{sender}"\n'
    [gateway] = read(tmp_path, text)
    assert gateway.config.sender == sender


def test_name_with_a_line_end_is_refused(tmp_path: Path) -> None:
    text = '[[gateway]]\nname = "a\\n"\nkind = "telnyx"\ntoken = "t"\n'
    [mistake] = mistakes(tmp_path, text)
    assert mistake.startswith("gateway[1].name: must be 1 to 32 small letters, digits, - and _")
