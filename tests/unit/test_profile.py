"""Mistakes in a profile are named all at once, with their places."""

from pathlib import Path

import pytest

from mailer.gateway.profile import load_profile, read_profile
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
