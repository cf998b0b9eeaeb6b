"""Mistakes in the parts of a profile about receipts and replies are named with their places."""

import pytest

from mailer.gateway.profile_file import read_profile
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
RECEIPT = '[receipt]\nid = "id"\nstatus = "s"\nstatuses = { delivered = [1] }\n'
REPLY = '[reply]\nsender = "from"\ntext = "text"\n'
POLL = """
[poll]
url = "{url}/status"
query = { id = "{ids}", key = "{token}" }
id = "id"
status = "s"
statuses = { delivered = [1] }
"""


def mistakes(text: str) -> list[str]:
    """Return the mistakes of a profile with a text, without the name of the file."""
    with pytest.raises(ConfigFileError) as error:
        read_profile((GOOD + text).encode(), "my.toml")
    return [line.removeprefix("my.toml: ") for line in error.value.mistakes]


@pytest.mark.parametrize("text", [RECEIPT, REPLY, POLL, RECEIPT + REPLY + POLL])
def test_profile_without_mistakes(text: str) -> None:
    assert read_profile((GOOD + text).encode(), "my.toml").title == "Test"


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ('id = "id"', 'id = "a..b"', "receipt.id: is not a path such as messages[0].status"),
        ('id = "id"', 'id = "a | "', "receipt.id: is not a path such as messages[0].status"),
        ('status = "s"', 'status = "s[*]"', "receipt.status: must have no star; use each"),
        ('id = "id"', 'id = "id"\nown_id = ""', "receipt.own_id: is not a path"),
        ('id = "id"', 'id = "id"\neach = "data"', "receipt.each: must end with [*] or .*"),
        ('id = "id"', 'id = "id"\neach = "a[*].b[*]"', "receipt.each: must end with [*] or .*"),
        ('id = "id"', 'id = "id"\neach = "[[*]"', "receipt.each: is not a path"),
        ('id = "id"', 'id = "id"\nsplit = ","', "receipt.split: must not be empty, and needs each"),
        ("delivered", "sent", "receipt.statuses: must say which values mean delivered"),
        ("delivered", "lost", "receipt.statuses.lost: must be one of delivered, sent, failed"),
        (
            'id = "id"',
            'id = "id"\nsignature = "acme"',
            "receipt.signature: must be one of twilio, vonage, sinch",
        ),
        (
            'id = "id"',
            'id = "id"\nmay_be_unsigned = true',
            "receipt.may_be_unsigned: needs a signature",
        ),
        (
            'id = "id"',
            'id = "id"\nmedia_type = "text"',
            "receipt.media_type: must be one such as text/plain",
        ),
        ('id = "id"', 'id = "id"\nmethods = []', "receipt.methods: must not be empty"),
        ('id = "id"', 'id = "id"\nmethods = ["PUT"]', "receipt.methods[1]: must be one of GET"),
        (
            'id = "id"',
            'id = "id"\nwhen = [{ path = "a", values = [] }]',
            "receipt.when[1].values: must not be empty",
        ),
        (
            'id = "id"',
            'id = "id"\nwhen = [{ path = "a", pattern = "(" }]',
            "receipt.when[1].pattern: is not a regular expression",
        ),
        (
            'id = "id"',
            'id = "id"\nwhen = [{ path = "a", missing = true, values = [1] }]',
            "receipt.when[1].missing: cannot be combined with values or a pattern",
        ),
        ('id = "id"', 'id = "id"\nwhen = [{ value = 1 }]', "receipt.when[1].value: is not known"),
        (
            RECEIPT,
            RECEIPT + '[[receipt.rule]]\npath = "a["\nthen = "sent"\n',
            "receipt.rule[1].path: is not a path",
        ),
        (
            RECEIPT,
            RECEIPT + '[[receipt.rule]]\npath = "a"\nthen = "lost"\n',
            "receipt.rule[1].then: must be one of delivered, sent",
        ),
    ],
)
def test_mistake_in_receipts_is_named(old: str, new: str, mistake: str) -> None:
    assert mistakes(RECEIPT.replace(old, new))[0].startswith(mistake)


@pytest.mark.parametrize(
    ("addition", "mistake"),
    [
        ('id = "a b"', "reply.id: is not a path"),
        ('recipient = "to[*]"', "reply.recipient: must have no star; use each for a list"),
        ('each = "results"', "reply.each: must end with [*] or .*"),
        ('reference = "ref"', "reply.reference: is needed together with part and parts"),
        ('charset = "coding"', "reply.charset: is needed together with charsets"),
        ('charsets = { "8" = "utf-16be" }', "reply.charset: is needed together with charsets"),
        ('encoding = "koi8-r"', "reply.encoding: must be one of utf-8, utf-16be, windows-1251"),
        ('when = [{ path = "a.." }]', "reply.when[1].path: is not a path"),
        ('media_type = "x y"', "reply.media_type: must be one such as text/plain"),
    ],
)
def test_mistake_in_replies_is_named(addition: str, mistake: str) -> None:
    assert mistakes(REPLY + addition)[0].startswith(mistake)


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("{ids}", "{token}", "poll.url: the request must have {ids}, or {id}"),
        ("{ids}", "{text}", "poll.query.id: {text} is not a placeholder"),
        ("{token}", "{callback}", "poll.query.key: {callback} is not a placeholder"),
        ("{url}/status", "https://x/", "poll.url: must start with {url}"),
        ('id = "id"', 'batch = 5\nid = "a["', "poll.id: is not a path"),
        ('id = "id"', "batch = 5", "poll.id: is required with a batch"),
        (
            "{token}",
            '{phone.digits}" }\nbatch = 5 #',
            "poll.batch: of several messages the request",
        ),
        ('id = "id"', 'batch = 0\nid = "id"', "poll.batch: "),
        ('id = "id"', 'body = "json"\nid = "id"', "poll.body: must be"),
    ],
)
def test_mistake_in_a_poll_is_named(old: str, new: str, mistake: str) -> None:
    found = mistakes(POLL.replace(old, new, 1))
    assert any(each.startswith(mistake) for each in found), found


def test_keys_of_the_poll_are_those_of_the_account() -> None:
    assert account_keys(read_profile((GOOD + POLL).encode(), "my.toml")) == {"token": True}


def test_placeholder_of_a_poll_is_none_of_a_request() -> None:
    text = GOOD.replace("{url}/send", "{url}/{ids}")
    with pytest.raises(ConfigFileError, match=r"request\.url: \{ids\} is not a placeholder"):
        read_profile(text.encode(), "my.toml")
