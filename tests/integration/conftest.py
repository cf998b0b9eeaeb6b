"""Fixtures: an OpenID provider behind a proxy that can change its responses."""

from collections.abc import AsyncIterator

import pytest
from tests.oidc_mitm import ProviderProxy, running_proxy
from tests.provider import OpenIdProvider

from mailer.oidc.provider import Provider


@pytest.fixture
async def proxy(openid: OpenIdProvider) -> AsyncIterator[ProviderProxy]:
    """The proxy in front of the provider; for mailer it is the provider."""
    async with running_proxy(openid) as proxy:
        yield proxy


@pytest.fixture
async def provider(proxy: ProviderProxy) -> AsyncIterator[Provider]:
    """mailer's client of the provider, behind the proxy."""
    async with proxy.provider() as provider:
        yield provider
