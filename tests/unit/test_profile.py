"""Mistakes in a profile are named all at once, with their places."""

from pathlib import Path

import pytest

from mailer.gateway.profile_file import load_profile, read_profile
from mailer.gateway.profile_mistakes import account_keys
from mailer.gateway.toml_file import ConfigFileError

GOOD = """
title = "Test"
[request]
url = "{url}/send"
[[response]]
status = 200
then = "accepted"
"""


def mistakes(text: str) -> list[str]:
    """Return the mistakes of a profile, without the name of the file."""
    with pytest.raises(ConfigFileError) as error:
        read_profile(text.encode(), "my.toml")
    assert all(line.startswith("my.toml: ") for line in error.value.mistakes)
    return sorted(line.removeprefix("my.toml: ") for line in error.value.mistakes)


def test_all_mistakes_of_structure_are_named() -> None:
    text = """
    name = "x"
    [request]
    method = "PUT"
    path = "/send"
    [limits]
    parts = 0
    [[response]]
    then = "ok"
    [[response]]
    stat = 200
    """
    found = mistakes(text)
    assert [line.split(": ")[0] for line in found] == [
        "limits.parts",
        "name",
        "request.method",
        "request.path",
        "request.url",
        "response[1].then",
        "response[2].stat",
        "response[2].then",
        "title",
    ]
    assert "title: is required" in found
    assert "request.method: must be one of GET, POST" in found


@pytest.mark.parametrize(
    ("addition", "mistake"),
    [
        (
            'path = "a..b"\nvalues = [1]',
            "response[1].path: is not a path such as messages[0].status",
        ),
        ("values = [1]", "response[1].values: need a path"),
        ('path = "a"', "response[1].path: needs values or a pattern"),
        ('pattern = ""', "response[1].pattern: must not be empty"),
        (
            'path = "a"\nvalues = [1]\nevery = true',
            "response[1].every: needs a path with [*]",
        ),
        (
            "whole_gateway = true",
            'response[1].whole_gateway: has no effect with then = "accepted"',
        ),
        ("status = 700", 'response[1].status: must be codes such as 503, or classes such as "4xx"'),
        ("status = []", 'response[1].status: must be codes such as 503, or classes such as "4xx"'),
        (
            'trouble = "no_credit"',
            'response[1].trouble: belongs to then = "account", and is required there',
        ),
        (
            'pattern = "("',
            (
                "response[1].pattern: is not a regular expression:"
                " missing ), unterminated subpattern at position 0"
            ),
        ),
        ('id_pattern = "x"', "response[1].id_pattern: must have a group in parentheses"),
        ('id = "a"\nid_pattern = "(x)"', "response[1].id_pattern: cannot be combined with id"),
    ],
)
def test_mistake_in_a_rule_is_named(addition: str, mistake: str) -> None:
    text = GOOD.replace("status = 200", addition)
    assert mistakes(text) == [mistake]


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        (
            "{url}/send",
            "https://x/send",
            "request.url: must start with {url}, the address of the API",
        ),
        (
            "[[response]]",
            'method = "GET"\n[[response]]',
            'request.body: must be "none" with the method GET',
        ),
        (
            "[[response]]",
            "fields = { a = '{texts}' }\n[[response]]",
            "request.fields.a: {texts} is not a placeholder",
        ),
        (
            "[[response]]",
            'body = "form"\nfields = { a = 1 }\n[[response]]',
            "request.fields.a: must be a text in quotes",
        ),
        (
            "[[response]]",
            'body = "none"\nfields = { a = "1" }\n[[response]]',
            "request.fields: a request without body has none; use request.query",
        ),
    ],
)
def test_mistake_in_the_request_is_named(old: str, new: str, mistake: str) -> None:
    [found] = mistakes(GOOD.replace(old, new))
    assert found.startswith(mistake)


def addition_to_request(line: str) -> str:
    """Return `GOOD` with a line in its request."""
    return GOOD.replace("[[response]]", f"{line}\n[[response]]")


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ('headers = { "X Key" = "1" }', "request.headers.'X Key': is not the name of a header"),
        ('headers = { "X:" = "1" }', "request.headers.'X:': is not the name of a header"),
        ('headers = { host = "x" }', "request.headers.host: is set by mailer"),
        ('headers = { Content-Length = "1" }', "request.headers.Content-Length: is set by mailer"),
        (
            'headers = { Transfer-Encoding = "chunked" }',
            "request.headers.Transfer-Encoding: is set",
        ),
        ('headers = { X-A = "1", x-a = "2" }', "request.headers.x-a: is there twice"),
        (
            'headers = { authorization = "x" }\nbasic_auth = { username = "a", password = "b" }',
            "request.headers.authorization: cannot be combined with basic_auth",
        ),
        (
            'headers = { X-A = "a\\nX-B: {id}" }',
            "request.headers.X-A: must be one line of printable",
        ),
        ('headers = { X-A = "я{id}" }', "request.headers.X-A: must be one line of printable"),
        ('headers = { X-A = "{text}" }', "request.headers.X-A: cannot have {text}"),
        ('headers = { X-A = "{sender}" }', "request.headers.X-A: cannot have {sender}"),
        ('fields = { a = "{Text}" }', "request.fields.a: {Text} is not a placeholder"),
        ('fields = { a = "{ text }" }', "request.fields.a: { text } is not a placeholder"),
        ('fields = { a = "{url}/x" }', "request.fields.a: {url} can only be the start"),
        (
            'basic_auth = { username = "{id}", password = "x" }',
            "request.basic_auth.username: {id} is not a placeholder; possible are account, pass",
        ),
        (
            'basic_auth = { username = "a:{account}", password = "x" }',
            "request.basic_auth.username: must have no colon",
        ),
    ],
)
def test_mistake_in_a_text_is_named(line: str, mistake: str) -> None:
    [found] = mistakes(addition_to_request(line))
    assert found.startswith(mistake)


@pytest.mark.parametrize(
    ("definition", "mistake"),
    [
        ('[by_text]\na = { gsm = "{text}", ucs2 = "x" }', "cannot have {text}"),
        ('[by_text]\na = { gsm = "x", ucs2 = "я" }', "must be one line of printable ASCII"),
        ('[with_callback]\na = "x\\ny"', "must be one line of printable ASCII"),
    ],
)
def test_definition_that_a_header_cannot_have_is_named(definition: str, mistake: str) -> None:
    text = addition_to_request('headers = { X-A = "{a}" }') + definition
    [found] = mistakes(text)
    assert found.startswith(f"request.headers.X-A: {mistake}")


@pytest.mark.parametrize(
    ("url", "mistake"),
    [
        ("{url}/{sender}", "{sender} may be empty"),
        ("{url}/{token?}", "{token?} may be empty"),
        ("{url}/{a}", "{a} may be empty"),
        ("{url}/{b}", "{b} may be empty"),
        ("{url}/send?x=1", "must have no ? and no #; use query"),
        ("{url}/send now", "has a character that a URL cannot have; write it as %XX"),
        ("{url}/{url}", "{url} can only be the start of request.url, balance.url"),
    ],
)
def test_mistake_in_the_address_is_named(url: str, mistake: str) -> None:
    definitions = '[by_text]\na = { gsm = "x", ucs2 = "{sender}" }\n[with_callback]\nb = "x"\n'
    [found] = mistakes(GOOD.replace("{url}/send", url) + definitions)
    assert found.startswith(f"request.url: {mistake}")


BALANCE = """
[balance]
url = "{url}/balance"
path = "balance"
"""


@pytest.mark.parametrize(
    ("addition", "mistake"),
    [
        (BALANCE.replace("{url}", "https://x"), "balance.url: must start with {url}"),
        (BALANCE.replace('"balance"', '"a..b"'), "balance.path: is not a path such as"),
        (BALANCE + 'headers = { Host = "x" }', "balance.headers.Host: is set by mailer"),
        (
            BALANCE + 'basic_auth = { username = "{user}", password = "x" }',
            "balance.basic_auth.username: {user} is not a placeholder",
        ),
        ('[with_callback]\na = "{id}"', "with_callback.a: {id} is not a placeholder; none is"),
        ('[with_callback]\ntext = "x"', "with_callback.text: is the name of another placeholder"),
        (
            '[by_text]\nid = { gsm = "1", ucs2 = "2" }',
            "by_text.id: is the name of another placeholder",
        ),
        (
            '[by_text]\na = { gsm = "1", ucs2 = "2" }\n[with_callback]\na = "x"',
            "with_callback.a: is the name of another placeholder",
        ),
        (
            "[limits]\nvalidity = { min = 5, max = 4 }",
            "limits.validity: min must not be larger than max",
        ),
    ],
)
def test_mistake_in_another_part_is_named(addition: str, mistake: str) -> None:
    [found] = mistakes(GOOD + addition)
    assert found.startswith(mistake)


def test_keys_of_the_balance_are_those_of_the_account() -> None:
    basic_auth = 'basic_auth = { username = "{username}", password = "{token}" }'
    profile = read_profile((GOOD + BALANCE + basic_auth).encode(), "my.toml")
    assert account_keys(profile) == {"username": True, "token": True}


@pytest.mark.parametrize(
    ("addition", "mistake"),
    [
        (
            '[receipt]\nid = "id"\nstatus = "s"\n[receipt.statuses]\nsent = 3',
            "receipt.statuses.sent: expected array, got int",
        ),
        (
            '[receipt]\nid = "id"\nstatus = "s"\n[receipt.statuses]\nlost = [3]',
            "receipt.statuses.lost: must be one of delivered, sent, failed, expired, unknown",
        ),
        (
            '[receipt]\nid = "id"\nstatus = "s"\nmethods = ["PUT"]\nstatuses = {}',
            "receipt.methods[1]: must be one of GET, POST",
        ),
        ('[by_text]\nA = { gsm = "1", ucs2 = "2" }', "by_text: expected str matching regex"),
        ('[with_callback]\n"a\\n" = "x"', "with_callback.a\n: expected str matching regex"),
    ],
)
def test_wrong_value_is_named_with_its_place(addition: str, mistake: str) -> None:
    [found] = mistakes(GOOD + addition)
    assert found.startswith(mistake)


def test_number_that_is_too_long_is_named() -> None:
    assert mistakes(f"a = {'1' * 5_000}") == ["has a number that is too long"]


def test_path_that_no_file_can_have_is_named() -> None:
    with pytest.raises(ConfigFileError, match=r"is not the path of a file"):
        load_profile("a\0.toml")


def test_mistake_of_toml_is_named_with_its_line() -> None:
    [mistake] = mistakes(GOOD + "then = \n")
    assert "line 8" in mistake


def test_file_that_is_not_utf_8_is_named_with_its_line() -> None:
    with pytest.raises(ConfigFileError, match="line 2 is not UTF-8"):
        read_profile(b"title = 'x'\n# \xff", "my.toml")


def test_profile_of_a_file_is_found_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(GOOD)
    assert load_profile("my.toml", tmp_path).title == "Test"
    with pytest.raises(ConfigFileError, match=r"other\.toml: cannot be read: No such file"):
        load_profile("./other.toml", tmp_path)


def test_unknown_kind_is_refused_with_the_shipped_ones() -> None:
    with pytest.raises(
        ConfigFileError, match="is none of android, exolve, infobip, jasmin, json, kannel"
    ):
        load_profile("acme")
