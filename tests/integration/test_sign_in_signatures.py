"""Signatures of ID tokens, and the keys that verify them.

In the header of a token, `alg` is the algorithm of the signature and `kid` the id of its key.
"""

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
    for alg in ("none", "None", "NONE"):  # "none" is the standard's name for no signature
        proxy.replace_tokens(
            lambda header, claims, alg=alg: unsigned({**header, "alg": alg}, claims)  # type: ignore[misc]  # a lambda has no types
        )
        assert await refusal(provider) == "wrong_algorithm"
    proxy.replace_tokens(unsigned)  # with the algorithm of the original token
    assert await refusal(provider) == "bad_signature"


async def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(
    proxy: ProviderProxy, provider: Provider
) -> None:
    """Algorithm confusion: an attacker signs by HMAC with the provider's public key as the secret.

    A verifier that takes the algorithm from the token would accept this.
    """
    key = proxy.openid.keys["RS256"]
    assert isinstance(key, RSAKey)
    public_key = key.as_pem(private=False)
    for kid in (key.kid, None):
        header = {"alg": "HS256", "kid": kid} if kid else {"alg": "HS256"}
        proxy.replace_tokens(
            lambda _, claims, header=header: signed_by_hmac(header, claims, public_key)  # type: ignore[misc]  # a lambda has no types
        )
        assert await refusal(provider) == "wrong_algorithm"


async def test_a_token_signed_with_the_clients_secret_is_refused(proxy: ProviderProxy) -> None:
    """HS256 is such an algorithm. The provider declares it, and uses it for this client."""
    client = proxy.openid.register(REDIRECT, id_token_signed_response_alg="HS256")  # noqa: S106  # no password
    async with proxy.provider(
        client_id=client.client_id, client_secret=client.client_secret
    ) as provider:
        assert await refusal(provider) == "wrong_algorithm"


async def test_an_algorithm_that_the_provider_does_not_declare_is_refused(
    proxy: ProviderProxy,
) -> None:
    supported = "id_token_signing_alg_values_supported"
    proxy.changes[DISCOVERY] = lambda document: {**document, supported: ["ES256", "PS256"]}
    async with proxy.provider() as provider:
        assert await refusal(provider) == "wrong_algorithm"


async def test_a_token_signed_with_another_key_of_the_same_id_is_refused(
    proxy: ProviderProxy, provider: Provider
) -> None:
    other_key = RSAKey.generate_key(2048)
    proxy.replace_tokens(lambda header, claims: signed(header, claims, other_key))
    assert await refusal(provider) == "bad_signature"


async def test_a_token_changed_after_signing_is_refused(
    proxy: ProviderProxy, provider: Provider
) -> None:
    key = proxy.openid.keys["RS256"]

    def tamper(header: Claims, claims: Claims) -> str:
        """Return a token with a valid signature, but with other claims than the signed ones."""
        _, _, signature = signed(header, claims, key).split(".")
        return unsigned(header, {**claims, "roles": ["admin"]}) + signature

    proxy.replace_tokens(tamper)
    assert await refusal(provider) == "bad_signature"


@pytest.mark.parametrize("kid", ["another", 7, ["x"], {}])
async def test_an_unknown_key_id_is_refused(
    proxy: ProviderProxy, provider: Provider, kid: object
) -> None:
    key = proxy.openid.keys["RS256"]
    with_any_signature = unsigned({"alg": "RS256", "kid": kid}, {}) + "AA"
    proxy.replace_tokens(
        lambda header, claims: (
            signed({**header, "kid": kid}, claims, key)
            if isinstance(kid, str)
            else with_any_signature  # the library does not sign with such a header
        )
    )
    assert await refusal(provider) in {"unknown_key", "bad_token"}


async def test_a_token_without_a_key_id_is_accepted_if_exactly_one_key_fits(
    proxy: ProviderProxy, provider: Provider
) -> None:
    key = proxy.openid.keys["RS256"]
    proxy.replace_tokens(lambda _, claims: signed({"alg": "RS256"}, claims, key))
    assert (await sign_in_identity(provider)).role == "viewer"

    second_key = RSAKey.generate_key(2048).as_dict(private=False, kid="more")
    proxy.changes[KEYS] = lambda document: {"keys": [*document["keys"], second_key]}
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
    with_any_signature = unsigned({"alg": "RS256", "kid": key.kid, "typ": typ}, {}) + "AA"
    proxy.replace_tokens(
        lambda header, claims: (
            signed({**header, "typ": typ}, claims, key)
            if isinstance(typ, str)
            else with_any_signature  # the library does not sign with such a header
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
        "e30.e30.e30",  # e30: {}
        "W10.e30.AA",  # W10: []
        "bnVsbA.e30.AA",  # bnVsbA: null
        "\u00e9.e30.AA",
        "a.b.c.d.e",
    ],
)
async def test_a_malformed_token_is_refused(
    proxy: ProviderProxy, provider: Provider, token: str
) -> None:
    proxy.replace_tokens(lambda _header, _claims: token)
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
        proxy.openid.rotate()  # new keys, which mailer does not know yet
        assert (await sign_in_identity(provider)).role == "viewer"
        assert proxy.request_counts[KEYS] == 2

        proxy.openid.rotate()
        clock.time = 59
        assert await refusal(provider) == "unknown_key"
        assert proxy.request_counts[KEYS] == 2

        clock.time = 60
        assert (await sign_in_identity(provider)).role == "viewer"
        assert proxy.request_counts[KEYS] == 3
