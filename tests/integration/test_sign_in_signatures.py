"""Signatures of ID tokens, and the keys that verify them."""

import pytest
from joserfc.jwk import RSAKey
from tests.oidc_mitm import (
    DISCOVERY,
    KEYS,
    REDIRECT,
    Claims,
    Clock,
    ProviderProxy,
    refusal,
    sign_in_identity,
    signed,
    signed_by_hmac,
    unsigned,
)

from mailer.oidc.provider import Provider


async def test_an_unsigned_token_is_refused(proxy: ProviderProxy, provider: Provider) -> None:
    for alg in ("none", "None", "NONE"):
        proxy.replace_tokens(
            lambda header, claims, alg=alg: unsigned({**header, "alg": alg}, claims)  # type: ignore[misc]  # a lambda has no types
        )
        assert await refusal(provider) == "wrong_algorithm"
    proxy.replace_tokens(unsigned)
    assert await refusal(provider) == "bad_signature"


async def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(
    proxy: ProviderProxy, provider: Provider
) -> None:
    """Algorithm confusion: the provider's public key used as an HMAC secret."""
    key = proxy.openid.keys["RS256"]
    assert isinstance(key, RSAKey)
    public = key.as_pem(private=False)
    for kid in (key.kid, None):
        header = {"alg": "HS256", "kid": kid} if kid else {"alg": "HS256"}
        proxy.replace_tokens(
            lambda _, claims, header=header: signed_by_hmac(header, claims, public)  # type: ignore[misc]  # a lambda has no types
        )
        assert await refusal(provider) == "wrong_algorithm"


async def test_a_token_signed_with_the_clients_secret_is_refused(proxy: ProviderProxy) -> None:
    """The provider itself signs so for a client that asks for HS256, and declares HS256."""
    client = proxy.openid.register(REDIRECT, id_token_signed_response_alg="HS256")  # noqa: S106  # no password
    async with proxy.provider(
        client_id=client.client_id, client_secret=client.client_secret
    ) as provider:
        assert await refusal(provider) == "wrong_algorithm"


async def test_an_algorithm_that_the_provider_does_not_declare_is_refused(
    proxy: ProviderProxy,
) -> None:
    name = "id_token_signing_alg_values_supported"
    proxy.changes[DISCOVERY] = lambda document: {**document, name: ["ES256", "PS256"]}
    async with proxy.provider() as provider:
        assert await refusal(provider) == "wrong_algorithm"


async def test_another_key_with_the_same_id_is_refused(
    proxy: ProviderProxy, provider: Provider
) -> None:
    other = RSAKey.generate_key(2048)
    proxy.replace_tokens(lambda header, claims: signed(header, claims, other))
    assert await refusal(provider) == "bad_signature"


async def test_a_token_changed_after_signing_is_refused(
    proxy: ProviderProxy, provider: Provider
) -> None:
    key = proxy.openid.keys["RS256"]

    def tamper(header: Claims, claims: Claims) -> str:
        good = signed(header, claims, key).split(".")
        bad = unsigned(header, {**claims, "roles": ["admin"]}).split(".")
        return f"{bad[0]}.{bad[1]}.{good[2]}"

    proxy.replace_tokens(tamper)
    assert await refusal(provider) == "bad_signature"


@pytest.mark.parametrize("kid", ["another", 7, ["x"], {}])
async def test_an_unknown_key_id_is_refused(
    proxy: ProviderProxy, provider: Provider, kid: object
) -> None:
    key = proxy.openid.keys["RS256"]
    unsigned_parts = unsigned({"alg": "RS256", "kid": kid}, {})
    proxy.replace_tokens(
        lambda header, claims: (
            signed({**header, "kid": kid}, claims, key)
            if isinstance(kid, str)
            else unsigned_parts + "AA"
        )
    )
    assert await refusal(provider) in {"unknown_key", "bad_token"}


async def test_a_token_without_a_key_id_is_accepted_if_exactly_one_key_fits(
    proxy: ProviderProxy, provider: Provider
) -> None:
    key = proxy.openid.keys["RS256"]
    proxy.replace_tokens(lambda _, claims: signed({"alg": "RS256"}, claims, key))
    assert (await sign_in_identity(provider)).role == "viewer"
    proxy.changes[KEYS] = lambda document: {
        "keys": [*document["keys"], RSAKey.generate_key(2048).as_dict(private=False, kid="more")]
    }
    async with proxy.provider() as other_provider:
        assert await refusal(other_provider) == "unknown_key"


async def test_invalid_keys_are_skipped(proxy: ProviderProxy, provider: Provider) -> None:
    invalid_keys: list[Claims] = [
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "AKP", "alg": "ML-DSA-44"},
        {"kty": ["RSA"]},
        {"kty": "RSA", "n": "", "e": 7},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "OKP", "crv": "X25519", "x": "AA"},
        {},
    ]
    proxy.changes[KEYS] = lambda document: {"keys": invalid_keys + document["keys"]}
    assert (await sign_in_identity(provider)).role == "viewer"


@pytest.mark.parametrize("typ", ["at+jwt", "logout+jwt", 7])
async def test_a_token_for_another_purpose_is_refused(
    proxy: ProviderProxy, provider: Provider, typ: object
) -> None:
    key = proxy.openid.keys["RS256"]
    unsigned_parts = unsigned({"alg": "RS256", "kid": key.kid, "typ": typ}, {}) + "AA"
    proxy.replace_tokens(
        lambda header, claims: (
            signed({**header, "typ": typ}, claims, key) if isinstance(typ, str) else unsigned_parts
        )
    )
    assert await refusal(provider) in {"wrong_type", "bad_token"}


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "..",
        "a.b.c",
        "e30.e30.e30",
        "W10.e30.AA",
        "bnVsbA.e30.AA",
        "\u00e9.e30.AA",
        "a.b.c.d.e",
    ],
)
async def test_a_malformed_token_is_refused(
    proxy: ProviderProxy, provider: Provider, token: str
) -> None:
    proxy.replace_tokens(lambda _, __: token)
    assert await refusal(provider) in {"bad_token", "wrong_algorithm"}


async def test_a_signed_payload_that_is_not_an_object_is_refused(
    proxy: ProviderProxy, provider: Provider
) -> None:
    key = proxy.openid.keys["RS256"]
    proxy.replace_tokens(lambda header, _: signed(header, [], key))  # type: ignore[arg-type]  # no claims, intentionally
    assert await refusal(provider) == "bad_token"


async def test_new_keys_are_requested_at_most_once_a_minute(proxy: ProviderProxy) -> None:
    clock = Clock()
    async with proxy.provider(clock=clock) as provider:
        await sign_in_identity(provider)
        proxy.openid.rotate()
        assert (await sign_in_identity(provider)).role == "viewer"
        assert proxy.request_counts[KEYS] == 2
        proxy.openid.rotate()
        clock.time = 59
        assert await refusal(provider) == "unknown_key"
        assert proxy.request_counts[KEYS] == 2
        clock.time = 60
        assert (await sign_in_identity(provider)).role == "viewer"
        assert proxy.request_counts[KEYS] == 3
