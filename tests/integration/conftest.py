"""Fixtures: an identity provider behind a proxy that can change its responses."""

from collections.abc import AsyncIterator

import pytest
from tests.oidc_mitm import Middle, between
from tests.provider import OpenIdProvider

from mailer.oidc.provider import Provider


@pytest.fixture
async def middle(openid: OpenIdProvider) -> AsyncIterator[Middle]:
    async with between(openid) as middle:
        yield middle


@pytest.fixture
async def provider(middle: Middle) -> AsyncIterator[Provider]:
    async with middle.provider() as provider:
        yield provider
