"""Validation of an OpenID provider's metadata, of the claims in ID tokens, and of userinfo.

The proxy changes what the provider sends; `refusal` returns the reason why mailer then refuses the
sign-in.
"""

import base64
import hashlib
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.oidc_mitm import (
    DISCOVERY,
    REDIRECT,
    TOKEN,
    USERINFO,
    Claims,
    ProviderProxy,
    refusal,
    sign_in_identity,
)
from tests.provider import sign_in

from mailer.oidc.model import SignInError
from mailer.oidc.provider import Provider

WRONG_SECRET = "not the client's"  # noqa: S105  # used in tests alone


@pytest.mark.parametrize("suffix", ["/", "?x", ".example"])
async def test_metadata_of_another_issuer_is_refused(proxy: ProviderProxy, suffix: str) -> None:
    proxy.changes[DISCOVERY] = lambda document: {**document, "issuer": document["issuer"] + suffix}
    async with proxy.provider() as provider:
        assert await refusal(provider) == "wrong_issuer"


@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint", "jwks_uri"])
@pytest.mark.parametrize(
    "url", ["http://id.example/x", "ftp://127.0.0.1/x", "https://", "x", "//["]
)
async def test_an_endpoint_must_use_tls_or_loopback(
    proxy: ProviderProxy, name: str, url: str
) -> None:
    proxy.changes[DISCOVERY] = lambda document: {**document, name: url}
    async with proxy.provider() as provider:
        assert await refusal(provider) == "unsafe_endpoint"


def without(name: str) -> Any:
    """Return a change that removes a claim."""
    return lambda claims: claims.pop(name) and None


def setting(**changed: object) -> Any:
    """Return a change that sets claims."""
    return lambda claims: claims.update(changed)


def at_time(**seconds: float) -> Any:
    """Return a change that sets claims to times: seconds from now, in the past if negative."""
    return lambda claims: claims.update(
        {name: time.time() + offset for name, offset in seconds.items()}
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (setting(iss="https://id.example"), "wrong_issuer"),
        (lambda claims: claims.update(iss=claims["iss"] + "/"), "wrong_issuer"),
        (lambda claims: claims.update(iss=[claims["iss"]]), "wrong_issuer"),
        (without("iss"), "wrong_issuer"),
        (setting(aud="another"), "wrong_audience"),
        (setting(aud=["another"]), "wrong_audience"),
        (setting(aud=[]), "wrong_audience"),
        (without("aud"), "wrong_audience"),
        (lambda claims: claims.update(aud=[claims["aud"], "another"]), "wrong_audience"),
        (
            lambda claims: claims.update(aud=[claims["aud"], "another"], azp="another"),
            "wrong_audience",
        ),
        (setting(azp="another"), "wrong_audience"),
        (setting(nonce="another"), "wrong_nonce"),
        (setting(nonce=None), "wrong_nonce"),
        (without("nonce"), "wrong_nonce"),
        (at_time(exp=-61), "expired"),  # 60 s are tolerated
        (setting(exp="never"), "expired"),
        (without("exp"), "expired"),
        (at_time(iat=70), "wrong_time"),
        (without("iat"), "wrong_time"),
        (at_time(nbf=70), "wrong_time"),
        (without("sub"), "no_subject"),
        (setting(sub=""), "no_subject"),
        (setting(sub=7), "no_subject"),
        (setting(sub="v" * 256), "no_subject"),
        (setting(sub="ve\0ra"), "no_subject"),
        (setting(at_hash="another"), "wrong_at_hash"),
        (setting(at_hash=7), "wrong_at_hash"),
    ],
)
async def test_a_token_with_a_wrong_claim_is_refused(
    proxy: ProviderProxy, provider: Provider, change: Any, reason: str
) -> None:
    proxy.change_token(change)
    assert await refusal(provider) == reason


@pytest.mark.parametrize(
    "change",
    [
        setting(),  # nothing
        at_time(exp=-30),
        at_time(iat=30, nbf=30),
        setting(sub="v" * 255),
        lambda claims: claims.update(aud=[claims["aud"]]),
        lambda claims: claims.update(aud=["another", claims["aud"]], azp=claims["aud"]),
    ],
)
async def test_a_resigned_token_with_valid_claims_is_accepted(
    proxy: ProviderProxy, provider: Provider, change: Any
) -> None:
    """So in the previous test, tokens are refused for their claims and not for their signature."""
    proxy.change_token(change)
    assert (await sign_in_identity(provider)).role == "viewer"


@pytest.mark.parametrize(
    ("alg", "digest"), [("RS256", "sha256"), ("ES256", "sha256"), ("EdDSA", "sha512")]
)
async def test_an_access_token_that_differs_from_the_hash_in_the_id_token_is_refused(
    proxy: ProviderProxy, alg: str, digest: str
) -> None:
    """The proxy adds the hash, the claim `at_hash`, since this provider does not."""
    replacement: Claims = {}

    def add_hash(response: Claims) -> None:
        """Add the hash of the access token to the ID token; then replace the access token."""
        full_hash = hashlib.new(digest, response["access_token"].encode()).digest()
        left_half = full_hash[: len(full_hash) // 2]
        at_hash = base64.urlsafe_b64encode(left_half).rstrip(b"=").decode()
        proxy.change_claims(response, setting(at_hash=at_hash))
        response.update(replacement)

    proxy.changes[TOKEN] = add_hash
    client = proxy.openid.register(REDIRECT, id_token_signed_response_alg=alg)
    credentials = {"client_id": client.client_id, "client_secret": client.client_secret}
    async with proxy.provider(**credentials) as provider:
        assert (await sign_in_identity(provider)).role == "viewer"
        for another in ("another", None):
            replacement["access_token"] = another
            assert await refusal(provider) == "wrong_at_hash"


async def test_a_callback_with_another_issuer_is_refused(provider: Provider) -> None:
    assert await refusal(provider, iss="https://id.example") == "wrong_issuer"


async def test_a_callback_without_an_issuer_is_refused_if_the_provider_declares_it(
    proxy: ProviderProxy,
) -> None:
    # without the declaration, the sign-in goes on and fails later because the code is wrong
    for is_declared, reason in ((True, "wrong_issuer"), (False, "code_refused")):
        proxy.changes[DISCOVERY] = lambda document, is_declared=is_declared: {  # type: ignore[misc]  # a lambda has no types
            **document,
            "authorization_response_iss_parameter_supported": is_declared,
        }
        async with proxy.provider() as provider:
            with pytest.raises(SignInError) as error:
                await provider.finish("code", REDIRECT, "nonce", "v" * 43)
            assert error.value.reason == reason


async def test_a_token_without_the_stored_nonce_is_refused(provider: Provider) -> None:
    assert await refusal(provider, nonce="another") == "wrong_nonce"


async def test_the_provider_refuses_a_wrong_verifier(provider: Provider) -> None:
    assert await refusal(provider, verifier="v" * 43) == "code_refused"


async def test_a_code_works_once(provider: Provider) -> None:
    start = await provider.start(REDIRECT)
    callback = parse_qs(urlsplit(await sign_in(start.url, "vera")).query)
    arguments = (callback["code"][0], REDIRECT, start.nonce, start.verifier, callback["iss"][0])
    assert (await provider.finish(*arguments)).subject == "vera"
    with pytest.raises(SignInError) as error:
        await provider.finish(*arguments)
    assert error.value.reason == "code_refused"


async def test_a_wrong_client_secret_has_its_own_reason(proxy: ProviderProxy) -> None:
    client = proxy.openid.register(REDIRECT)
    async with proxy.provider(client_id=client.client_id, client_secret=WRONG_SECRET) as provider:
        assert await refusal(provider) == "client_refused"


async def test_userinfo_of_another_user_is_refused(
    proxy: ProviderProxy, provider: Provider
) -> None:
    assert (await sign_in_identity(provider, "ulla")).role == "operator"
    proxy.changes[USERINFO] = lambda document: {**document, "sub": "vera"}
    assert await refusal(provider, "ulla") == "wrong_subject"
