"""Signing in at an OpenID provider: the identity, the name and the role that the user gets.

The users of the provider, such as vera, are in `tests.provider`.
"""

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.oidc_mitm import (
    DISCOVERY,
    REDIRECT,
    ROLE_WORDS,
    TOKEN,
    ProviderProxy,
    refusal,
    sign_in_identity,
)
from tests.provider import OpenIdProvider

from mailer.oidc.model import Identity
from mailer.oidc.provider import Provider


@pytest.mark.parametrize(
    ("login", "name", "role"),
    [
        ("vera", "Vera Viewer", "viewer"),
        ("oleg", "Oleg Operator", "operator"),
        ("anna", "Anna Admin", "admin"),
        ("ulla", "Ulla Userinfo", "operator"),
    ],
)
async def test_a_user_gets_the_highest_of_their_roles(
    openid: OpenIdProvider, login: str, name: str, role: Any
) -> None:
    client = openid.register(REDIRECT)
    async with Provider(
        issuer=openid.issuer,
        client_id=client.client_id,
        client_secret=client.client_secret,
        role_claim="roles",
        roles=ROLE_WORDS,
    ) as provider:
        identity = await sign_in_identity(provider, login)
    assert identity == Identity(issuer=openid.issuer, subject=login, name=name, role=role)


@pytest.mark.parametrize("login", ["nora", "nils"])
async def test_a_user_without_a_role_is_refused(provider: Provider, login: str) -> None:
    assert await refusal(provider, login) == "no_role"


@pytest.mark.parametrize(
    ("claim", "login"),
    [("realm_access.roles", "kira"), ("https://example.com/roles", "zoya")],
)
async def test_the_role_claim_is_a_name_or_a_path(
    proxy: ProviderProxy, claim: str, login: str
) -> None:
    async with proxy.provider(role_claim=claim, roles={"admin": "operator"}) as provider:
        assert (await sign_in_identity(provider, login)).role == "operator"
        assert await refusal(provider, "vera") == "no_role"  # her roles are in another claim
    async with proxy.provider(role_claim="roles") as provider:
        assert await refusal(provider, login) == "no_role"


@pytest.mark.parametrize("roles", [7, {"admin": True}, [["admin"]], "admin viewer", [], None])
async def test_a_role_claim_of_another_type_is_no_role(
    proxy: ProviderProxy, provider: Provider, roles: object
) -> None:
    proxy.change_token(lambda claims: {**claims, "roles": roles})
    assert await refusal(provider, "nils") == "no_role"


@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA"])
async def test_tokens_may_be_signed_with_any_supported_algorithm(
    proxy: ProviderProxy, alg: str
) -> None:
    client = proxy.openid.register(REDIRECT, id_token_signed_response_alg=alg)
    async with proxy.provider(
        client_id=client.client_id, client_secret=client.client_secret
    ) as provider:
        assert (await sign_in_identity(provider)).role == "viewer"


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post", "none"])
async def test_mailer_authenticates_by_the_method_that_the_provider_supports(
    proxy: ProviderProxy, method: str
) -> None:
    proxy.changes[DISCOVERY] = lambda document: {
        **document,
        "token_endpoint_auth_methods_supported": [method],
    }
    client = proxy.openid.register(REDIRECT, token_endpoint_auth_method=method)
    assert (client.client_secret is None) == (method == "none")
    async with proxy.provider(
        client_id=client.client_id, client_secret=client.client_secret
    ) as provider:
        assert (await sign_in_identity(provider)).subject == "vera"
    [(headers, body)] = [(headers, body) for path, headers, body in proxy.sent if path == TOKEN]
    assert ("Authorization" in headers) == (method == "client_secret_basic")
    assert ("client_secret" in body) == (method == "client_secret_post")


async def test_a_name_is_cleaned_and_truncated(proxy: ProviderProxy, provider: Provider) -> None:
    with_control_characters = "V\0e\u202er\na " + "x" * 300
    proxy.change_token(lambda claims: {**claims, "name": with_control_characters})
    assert (await sign_in_identity(provider)).name == "Vera " + "x" * 195  # 200 characters
    proxy.change_token(lambda claims: {**claims, "name": "Zoe\u0308"})
    assert (await sign_in_identity(provider)).name == "Zoë"


async def test_without_a_usable_name_the_subject_is_the_name(
    proxy: ProviderProxy, provider: Provider
) -> None:
    proxy.change_token(lambda claims: {**claims, "name": ["Vera"], "email": " \n"})
    assert (await sign_in_identity(provider)).name == "vera"


async def test_every_sign_in_has_new_secrets(provider: Provider) -> None:
    first, second = await provider.start(REDIRECT), await provider.start(REDIRECT)
    query = parse_qs(urlsplit(first.url).query)
    assert query["state"] == [first.state]
    assert query["nonce"] == [first.nonce]
    assert query["code_challenge_method"] == ["S256"]
    assert first.verifier not in first.url
    secrets = {
        secret for start in (first, second) for secret in (start.state, start.nonce, start.verifier)
    }
    assert len(secrets) == 6  # all are different
    assert min(map(len, secrets)) >= 43  # characters, the minimum of PKCE for a verifier
