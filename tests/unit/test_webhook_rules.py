"""Rules of webhooks: signatures, pauses, addresses, inputs."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from mailer.errors import InvalidError
from mailer.validation import check
from mailer.webhook.addresses import (
    AddressPolicy,
    HostNotFoundError,
    PrivateAddressError,
    is_public,
)
from mailer.webhook.delivery import payload
from mailer.webhook.model import NewWebhook, Redelivery, WebhookChange
from mailer.webhook.queue import ClaimedDelivery
from mailer.webhook.retry_policy import (
    JITTER,
    RETRY_PAUSES,
    failure_of,
    is_failing_too_long,
    is_success,
    retry_pause,
)
from mailer.webhook.signature import SIGNING_KEY_BYTES, new_secret, show_secret, signed_headers

NOW = datetime(2030, 1, 15, 12, tzinfo=UTC)
VALID = {"name": "Shop", "url": "https://shop.example/hook?key=1", "events": ["gateway.up"]}


# ---- signatures ------------------------------------------------------------------------------


@given(body=st.text(st.characters(codec="utf-8")), secret=st.binary(min_size=24, max_size=64))
def test_the_library_of_the_specification_accepts_each_signature(body: str, secret: bytes) -> None:
    at = datetime.now(UTC)
    headers = signed_headers("a-b", at, body.encode(), [secret])
    verifier = Verifier(show_secret(secret))
    verifier.verify(body, headers, json_parse=False)
    assert headers["webhook-signature"] == verifier.sign("a-b", at, body)


@pytest.mark.parametrize("header", ["webhook-id", "webhook-timestamp"])
def test_a_signature_covers_id_and_time(header: str) -> None:
    secret, at = new_secret(), datetime.now(UTC)
    signed = signed_headers("id", at, b"{}", [secret])
    other = signed_headers("other", at - timedelta(seconds=9), b"{}", [secret])
    with pytest.raises(WebhookVerificationError):
        Verifier(show_secret(secret)).verify(b"{}", signed | {header: other[header]})


def test_a_receiver_with_either_secret_accepts_a_request_during_a_rotation() -> None:
    new, old, other = new_secret(), new_secret(), new_secret()
    headers = signed_headers("id", datetime.now(UTC), b"{}", [new, old])
    for secret in (new, old):
        Verifier(show_secret(secret)).verify(b"{}", headers)
    with pytest.raises(WebhookVerificationError):
        Verifier(show_secret(other)).verify(b"{}", headers)


def test_a_secret_is_as_long_as_the_specification_requires_and_never_the_same() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert {len(secret) for secret in secrets} == {SIGNING_KEY_BYTES}
    assert 24 <= SIGNING_KEY_BYTES <= 64
    assert show_secret(b"\0" * 24) == "whsec_" + "A" * 32


def test_the_payload_of_an_event_is_always_the_same_bytes() -> None:
    event = ClaimedDelivery(1, 2, 3, UUID(int=4), "test", NOW, '{"a": "ж"}')
    assert payload(event) == (
        '{"type":"test","timestamp":"2030-01-15T12:00:00.000000Z","data":{"a": "ж"}}'.encode()
    )
    assert json.loads(payload(event))["data"] == {"a": "ж"}


# ---- attempts --------------------------------------------------------------------------------


def test_pauses_grow_and_end_within_three_days() -> None:
    pauses = [retry_pause(attempts, 0.0) for attempts in range(1, len(RETRY_PAUSES) + 1)]
    assert pauses == sorted(RETRY_PAUSES)
    assert timedelta(days=2) < timedelta(seconds=sum(RETRY_PAUSES)) < timedelta(days=3)
    assert retry_pause(len(RETRY_PAUSES) + 1, 0.0) is None


@given(attempts=st.integers(1, len(RETRY_PAUSES)), random=st.floats(0, 1))
def test_a_pause_is_shorter_at_random(attempts: int, random: float) -> None:
    pause = retry_pause(attempts, random)
    assert pause is not None
    assert RETRY_PAUSES[attempts - 1] * (1 - JITTER) <= pause <= RETRY_PAUSES[attempts - 1]


def test_an_endpoint_may_ask_for_a_longer_pause_of_a_day_at_most() -> None:
    assert retry_pause(1, 0.0, 60) == 60
    assert retry_pause(1, 0.0, 1) == 5
    assert retry_pause(1, 0.0, 1e9) == 24 * 3600


def test_an_endpoint_fails_for_too_long_after_three_days_or_many_failures_of_a_day() -> None:
    day = timedelta(days=1)
    assert not is_failing_too_long(99, NOW - 2 * day, NOW)
    assert not is_failing_too_long(1_000, NOW - day / 2, NOW)
    assert is_failing_too_long(100, NOW - day, NOW)
    assert is_failing_too_long(2, NOW - 3 * day, NOW)


def test_only_statuses_2xx_are_successes() -> None:
    assert [status for status in range(100, 600) if is_success(status)] == list(range(200, 300))
    assert [failure_of(status) for status in (302, 410, 500)] == [
        "redirect",
        "http_410",
        "http_500",
    ]


# ---- addresses -------------------------------------------------------------------------------

PRIVATE = """
    0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.255 169.254.1.1
    169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1
    192.168.0.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1
    255.255.255.255
    :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1
    64:ff9b::a9fe:a9fe 64:ff9b:1::1 100::1 2001:db8::1 2002:7f00:1::1 2002:a00:1::1 2002:c0a8:1::
    2001:0:4136:e378:8000:63bf:f5ff:fffe 2001:2::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1
    fe80::1%1 2606:4700::1%1 fec0::1 ff02::1 ff0e::1 127.1 2130706433 0x7f000001 localhost"""
PUBLIC = """
    1.1.1.1 8.8.8.8 172.15.255.255 172.32.0.1 192.169.0.1 223.255.255.254
    2606:4700:4700::1111 2a00:1450:4010::1 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1"""


@pytest.mark.parametrize("address", [*PRIVATE.split(), ""])
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_public(address)


async def test_a_host_with_one_private_address_among_others_is_refused() -> None:
    async def resolve(host: str, _: int) -> list[str]:
        return ["8.8.8.8", host]

    policy = AddressPolicy(resolve=resolve)
    assert [found.address for found in await policy.find("1.1.1.1", 443)] == ["8.8.8.8", "1.1.1.1"]
    with pytest.raises(PrivateAddressError):
        await policy.find("10.0.0.1", 443)
    allowing = AddressPolicy(allows_private=True, resolve=resolve)
    assert len(await allowing.find("10.0.0.1", 443)) == 2


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f.1", "017700000001", "localhost"])
async def test_every_way_to_write_a_loopback_address_is_refused(host: str) -> None:
    with pytest.raises((PrivateAddressError, HostNotFoundError)):
        await AddressPolicy().find(host, 80)


async def test_a_host_without_an_address_is_an_error_of_its_own() -> None:
    async def resolve_nothing(_: str, __: int) -> list[str]:
        return []

    with pytest.raises(HostNotFoundError):
        await AddressPolicy(resolve=resolve_nothing).find("shop.example", 443)
    with pytest.raises(HostNotFoundError):
        await AddressPolicy().find("a" * 70 + ".example", 443)


# ---- inputs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        *("", "shop.example", "ftp://shop.example/", "https://", "https:///path", "file:///etc"),
        *("https://user@shop.example/", "https://user:password@shop.example/"),
        *("https://shop.example/#part", "https://shop.example:0/", "https://shop.example:65536/"),
        *("https://shop example/", "https://shop.example/\n", "https://магазин.example/"),
        *("https://127.1/", "https://2130706433/", "https://[::1", "https://a/" + "b" * 2000),
    ],
)
def test_a_wrong_url_is_named(url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check(NewWebhook, VALID | {"url": url}, NOW)
    assert [error.field for error in caught.value.errors] == ["url"]


@pytest.mark.parametrize(
    "events", [[], ["test"], ["messages.sent"], ["gateway.up", "gateway.up"], "gateway.up", None]
)
def test_wrong_events_are_named(events: object) -> None:
    with pytest.raises(InvalidError) as caught:
        check(NewWebhook, VALID | {"events": events}, NOW)
    assert [error.field for error in caught.value.errors] == ["events"]


def test_valid_inputs_are_accepted() -> None:
    assert check(NewWebhook, VALID, NOW).url == VALID["url"]
    assert check(WebhookChange, {"enabled": False}, NOW).enabled is False
    assert check(Redelivery, {"delivery_id": 1}, NOW).delivery_id == 1


@pytest.mark.parametrize("given", [{}, {"delivery_id": 1, "failed_since": "2030-01-15T00:00:00Z"}])
def test_a_redelivery_names_one_delivery_or_a_time(given: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        check(Redelivery, given, NOW)
