"""Whether receipts are awaited, the URL for them, and which calls are the provider's."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mailer.gateway.callback import Callback
from mailer.gateway.config import ConfiguredGateway, configured_gateways, read_gateways
from mailer.gateway.config_table import GatewayConfig
from mailer.gateway.profile_file import load_profile, shipped_kinds
from mailer.gateway.protocol import ReceiptUse
from mailer.gateway.signatures import SIGNATURE_SCHEMES, sign
from mailer.gateway.signatures.telnyx import public_key
from mailer.gateway.toml_file import ConfigFileError
from mailer.settings import Settings
from mailer.urls import read_gateway_url

PUBLIC = "https://mailer.example"
SECRET, PREVIOUS, TOKEN = "new-secret-of-calls", "old-secret-of-calls", "token-of-the-account"
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
PRIVATE_KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"""Of Ed25519: 32 bytes."""

GIVEN_URL = {
    "infobip",
    "jasmin",
    "json",
    "kannel",
    "messagebird",
    "plivo",
    "sinch",
    "smsaero",
    "telnyx",
    "twilio",
    "vonage",
}
OF_ACCOUNT = {"android", "smsc", "smsru", "textbee"}
"""Kinds whose URL for receipts is a setting of the account."""


def gateway(kind: str, **keys: Any) -> ConfiguredGateway:  # any key of the file
    """Return a gateway of a kind."""
    config = GatewayConfig(name="main", kind=kind, **({"token": TOKEN} | keys))
    return ConfiguredGateway(config, load_profile(kind), read_gateway_url("http://h/"))


def post(url: str, body: bytes = b"a=1") -> Callback:
    """Return a call by POST."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    return Callback("POST", url, headers, body)


def test_kinds_are_given_a_url_or_have_one_in_the_account() -> None:
    assert {*shipped_kinds()} == GIVEN_URL | OF_ACCOUNT | {"exolve"}
    assert {kind for kind in shipped_kinds() if gateway(kind).callbacks.is_given_url} == GIVEN_URL


@pytest.mark.parametrize("kind", sorted(GIVEN_URL))
def test_receipts_are_awaited_if_they_can_come(kind: str) -> None:
    with_secret = gateway(kind, callback_secret=SECRET)
    assert with_secret.awaits_receipts(PUBLIC)
    assert with_secret.callback_url(PUBLIC)
    without = gateway(kind)
    has_token = kind in {"twilio", "plivo"}
    assert without.awaits_receipts(PUBLIC) is (has_token or kind == "smsaero")
    assert bool(without.callback_url(PUBLIC)) is has_token
    assert with_secret.awaits_receipts(None) is (kind == "smsaero")  # it can be asked
    assert with_secret.callback_url(None) == ""
    no = gateway(kind, callback_secret=SECRET, receipts=False)
    assert not no.awaits_receipts(PUBLIC)
    assert no.callback_url(PUBLIC) == ""


@pytest.mark.parametrize("kind", sorted(OF_ACCOUNT))
def test_receipts_of_an_account_are_awaited_if_the_file_says_so(kind: str) -> None:
    assert not gateway(kind, callback_secret=SECRET).awaits_receipts(PUBLIC)
    wanted = gateway(kind, callback_secret=SECRET, receipts=True)
    assert wanted.awaits_receipts(PUBLIC)
    assert wanted.callback_url(PUBLIC) == ""
    can_be_asked = kind != "textbee"
    assert wanted.awaits_receipts(None) is can_be_asked


def test_kind_without_receipts_awaits_none() -> None:
    assert not gateway("exolve").awaits_receipts(PUBLIC)
    assert gateway("exolve").callback_url(PUBLIC) == ""


@pytest.mark.parametrize(
    ("kind", "query"),
    [
        ("infobip", f"?secret={SECRET}&message="),
        ("vonage", f"?secret={SECRET}&message="),  # it may be unsigned
        ("twilio", "?message="),
        ("telnyx", "?message="),
    ],
)
def test_url_has_the_secret_unless_the_provider_signs(kind: str, query: str) -> None:
    url = gateway(kind, callback_secret=SECRET, previous_callback_secret=PREVIOUS).callback_url(
        f"{PUBLIC}/"
    )
    assert url == f"{PUBLIC}/gateways/main/receipts{query}"


@pytest.mark.parametrize(
    ("kind", "names_gateway_id"),
    [("twilio", False), ("vonage", False), ("smsru", True), ("textbee", True), ("smsc", False)],
)
def test_use_of_receipts(kind: str, *, names_gateway_id: bool) -> None:
    configured = gateway(kind, callback_secret=SECRET, receipts=True)
    url = configured.callback_url(PUBLIC)
    assert configured.receipt_use(PUBLIC) == ReceiptUse(True, url, names_gateway_id)  # noqa: FBT003  # as in the struct


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (f"?secret={SECRET}&message=1", True),
        (f"?secret={PREVIOUS}&message=1", True),
        (f"?message=1&secret={SECRET}", True),
        ("?secret=new%2Dsecret%2dof-calls", True),
        (f"?secret={SECRET}x", False),
        (f"?secret={SECRET[:-1]}", False),
        (f"?secret={SECRET.upper()}", False),
        ("?secret=", False),
        ("?secret=%FF%00", False),
        ("?message=1", False),
        ("", False),
        (f"?secret={SECRET}&secret={SECRET}", False),
        (f"?Secret={SECRET}", False),
    ],
)
def test_secret_in_the_url_proves_a_call(query: str, *, expected: bool) -> None:
    configured = gateway("infobip", callback_secret=SECRET, previous_callback_secret=PREVIOUS)
    call = post(f"{PUBLIC}/gateways/main/receipts{query}")
    assert configured.authenticates(call, NOW) is expected


def test_secret_in_the_body_proves_nothing() -> None:
    configured = gateway("infobip", callback_secret=SECRET)
    call = post(f"{PUBLIC}/gateways/main/receipts", f"secret={SECRET}".encode())
    assert not configured.authenticates(call, NOW)


def test_without_a_secret_no_call_is_authentic() -> None:
    for query in ("", "?secret=", "?secret=None"):
        assert not gateway("infobip").authenticates(post(f"{PUBLIC}/x{query}"), NOW)


def call_for(scheme: str) -> Callback:
    """Return a call that a scheme can sign."""
    bodies = {
        "smsc": b"id=12&phone=79161234567&status=1",
        "smsru": b"data%5B0%5D=sms_status%0A1-1%0A103%0A1",
    }
    return post(f"{PUBLIC}/gateways/main/receipts?message=12", bodies.get(scheme, b"a=1"))


@pytest.mark.parametrize("scheme", sorted(SIGNATURE_SCHEMES))
def test_signature_proves_a_call(scheme: str) -> None:
    signing = PRIVATE_KEY if scheme == "telnyx" else SECRET
    verifying = public_key(PRIVATE_KEY) if scheme == "telnyx" else SECRET
    call = sign(scheme, call_for(scheme), signing, NOW)
    current = gateway(scheme, callback_secret=verifying)
    previous = gateway(scheme, callback_secret="x" * 44, previous_callback_secret=verifying)
    other = gateway(scheme, callback_secret="x" * 44)
    assert current.authenticates(call, NOW)
    assert previous.authenticates(call, NOW)
    assert not other.authenticates(call, NOW)
    assert not gateway(scheme).authenticates(call, NOW)
    assert not current.authenticates(call_for(scheme), NOW)
    changed = replace(call, body=call.body.replace(b"1", b"2", 1))
    assert not current.authenticates(changed, NOW)


@pytest.mark.parametrize("scheme", ["twilio", "plivo", "smsru"])
def test_token_of_the_account_signs_unless_there_is_another_secret(scheme: str) -> None:
    call = sign(scheme, call_for(scheme), TOKEN, NOW)
    assert gateway(scheme).authenticates(call, NOW)
    assert not gateway(scheme, callback_secret=SECRET).authenticates(call, NOW)
    replaced = gateway(scheme, token="new-token-of-account", previous_callback_secret=TOKEN)  # noqa: S106  # not a real secret
    assert replaced.authenticates(call, NOW)


@pytest.mark.parametrize("kind", ["telnyx", "smsc", "android", "textbee", "twilio"])
def test_secret_in_the_url_is_not_enough_if_the_provider_always_signs(kind: str) -> None:
    call = post(f"{PUBLIC}/gateways/main/receipts?secret={SECRET}")
    assert not gateway(kind, callback_secret=SECRET).authenticates(call, NOW)


def mistakes(folder: Path, keys: str, public_url: str | None = PUBLIC) -> list[str]:
    """Return the mistakes of a file with one gateway, without its place; none if it is right."""
    file = folder / "gateways.toml"
    file.write_text(f'[[gateway]]\nname = "main"\n{keys}\n')
    try:
        configured_gateways(Settings(gateways=str(file), public_url=public_url), {})
    except ConfigFileError as error:
        place = re.compile(rf"{re.escape(str(file))}: (gateway\[1\]\.|main: )")
        return [place.sub("", mistake) for mistake in error.mistakes]
    return []


TWILIO = 'kind = "twilio"\naccount = "AC1"\ntoken = "t"\n'
INFOBIP = 'kind = "infobip"\nurl = "https://x.example"\ntoken = "t"\n'
VONAGE = 'kind = "vonage"\naccount = "a"\ntoken = "t"\n'


@pytest.mark.parametrize(
    ("keys", "public_url", "mistake"),
    [
        (
            INFOBIP + 'callback_secret = "short"',
            PUBLIC,
            "callback_secret: must have 16 characters or more",
        ),
        (
            INFOBIP + f'callback_secret = "{SECRET}"\nprevious_callback_secret = "short"',
            PUBLIC,
            "previous_callback_secret: must have 16 characters or more",
        ),
        (
            INFOBIP + 'callback_secret = "secret with spaces"',
            PUBLIC,
            (
                "callback_secret: may only have letters of ASCII, digits and - . _ ~, because it"
                " is a part of a URL"
            ),
        ),
        (
            INFOBIP + f'previous_callback_secret = "{SECRET}"',
            PUBLIC,
            "previous_callback_secret: needs a callback_secret, which replaces it",
        ),
        (
            'kind = "exolve"\ntoken = "t"\ncallback_secret = "secret-of-calls-1"',
            PUBLIC,
            "callback_secret: is not used by this kind, which has neither receipts nor replies",
        ),
        ('kind = "exolve"\ntoken = "t"\nreceipts = true', PUBLIC, "receipts: this kind has none"),
        (
            INFOBIP + f'callback_secret = "{SECRET}"\nreceipts = true',
            None,
            "receipts: set MAILER_PUBLIC_URL to the address at which the provider reaches mailer",
        ),
        (
            INFOBIP + "receipts = true",
            PUBLIC,
            (
                "receipts: set callback_secret, so that mailer can tell the provider's calls from"
                " others"
            ),
        ),
        (
            VONAGE + f'callback_secret = "{SECRET}"\nreceipts = true',
            "https://mailer.marketing.example",
            (
                "receipts: the URL for receipts would have 107 characters, and the provider takes"
                " 100: shorten MAILER_PUBLIC_URL, name or callback_secret"
            ),
        ),
    ],
)
def test_mistake_is_named(tmp_path: Path, keys: str, public_url: str | None, mistake: str) -> None:
    assert mistakes(tmp_path, keys, public_url) == [mistake]


@pytest.mark.parametrize(
    "keys",
    [
        INFOBIP,
        INFOBIP + f'callback_secret = "{SECRET}"\nprevious_callback_secret = "{PREVIOUS}"',
        INFOBIP + "receipts = false",
        VONAGE + f'callback_secret = "{SECRET}"\nreceipts = true',
        TWILIO + "receipts = true",
        TWILIO + 'previous_callback_secret = "0123456789abcdef"',
        'kind = "telnyx"\ntoken = "t"\ncallback_secret = "e+/e0123456789abcdef="',
        'kind = "smsru"\ntoken = "t"\nreceipts = true',
    ],
)
def test_file_without_mistakes(tmp_path: Path, keys: str) -> None:
    assert mistakes(tmp_path, keys) == []


def test_url_that_is_too_long_for_the_provider_is_not_given() -> None:
    configured = gateway("vonage", callback_secret="s" * 60)
    assert not configured.awaits_receipts(PUBLIC)
    assert configured.callback_url(PUBLIC) == ""


def test_secrets_come_from_elsewhere_and_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "old").write_text(f"{PREVIOUS}\n")
    file = tmp_path / "gateways.toml"
    keys = 'callback_secret = "${NEW}"\nprevious_callback_secret = "file:old"\n'
    file.write_text(f'[[gateway]]\nname = "main"\n{INFOBIP}{keys}')
    [configured] = read_gateways(file, {"NEW": SECRET})
    for secret in (SECRET, PREVIOUS):
        call = post(f"{PUBLIC}/gateways/main/receipts?secret={secret}")
        assert configured.authenticates(call, NOW)
        assert secret not in repr(configured) + repr(configured.callbacks)


def test_channel_is_kept_if_only_secrets_of_calls_change() -> None:
    old, new = (
        gateway("infobip", callback_secret=PREVIOUS),
        gateway(
            "infobip", callback_secret=SECRET, previous_callback_secret=PREVIOUS, receipts=True
        ),
    )
    assert new.connects_like(old)


@pytest.mark.parametrize(
    ("keys", "public_url", "expected"),
    [
        ({"kind": "twilio"}, None, None),
        ({"kind": "twilio", "receipts": False}, PUBLIC, None),
        (
            {"kind": "twilio"},
            PUBLIC,
            "receipts: the provider calls https://mailer.example/gateways/main/receipts",
        ),
        (
            {"kind": "infobip"},
            PUBLIC,
            (
                "no receipts: set callback_secret, so that mailer can tell the provider's calls"
                " from others"
            ),
        ),
        ({"kind": "smsc"}, PUBLIC, "no receipts: set receipts = true"),
        (
            {"kind": "smsc", "receipts": True},
            PUBLIC,
            "receipts: mailer asks the provider for them",
        ),
        ({"kind": "exolve"}, PUBLIC, "no receipts: this kind has none"),
    ],
)
def test_receipts_in_words(
    keys: dict[str, Any], public_url: str | None, expected: str | None
) -> None:
    assert gateway(**keys).callbacks.describe(public_url) == expected
