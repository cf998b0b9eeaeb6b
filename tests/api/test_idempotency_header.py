"""Valid and invalid values of the Idempotency-Key header."""

import re
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import NEW, field_errors
from tests.api.repeats import COUNT_MAILINGS, NEW_MAILING, is_same, post
from tests.factories import value

from mailer.web.openapi import IDEMPOTENCY_KEY


def matches_schema(key: str) -> bool:
    """Return whether a key is valid by the OpenAPI schema."""
    schema: Any = IDEMPOTENCY_KEY["schema"]
    is_long_enough = schema["minLength"] <= len(key) <= schema["maxLength"]
    return is_long_enough and re.search(schema["pattern"], key) is not None


@pytest.mark.parametrize("key", ['"a"', "a"])
async def test_quotes_around_a_key_are_ignored(api: httpx.AsyncClient, key: str) -> None:
    first = await post(api, NEW_MAILING, "a")
    assert is_same(first, await post(api, NEW_MAILING, key))


@pytest.mark.parametrize(
    "key", ["", '""', "a b", "x" * 256, f'"{"x" * 254}"', "ключ", "a\x7f", "a\tb", '"a b"']
)
async def test_an_invalid_key_is_400(engine: AsyncEngine, api: httpx.AsyncClient, key: str) -> None:
    headers = {b"Idempotency-Key": key.encode()}
    response = await api.post("/mailings", json=NEW, headers=headers)
    assert response.status_code == 400
    assert field_errors(response) == {
        "Idempotency-Key": "must come once, as 1 to 255 visible ASCII characters"
    }
    assert await value(engine, COUNT_MAILINGS) == 0
    assert not matches_schema(key)


async def test_two_keys_in_one_request_are_400(api: httpx.AsyncClient) -> None:
    twice = [(b"Idempotency-Key", b"a"), (b"Idempotency-Key", b"b")]
    response = await api.post("/mailings", json=NEW, headers=twice)
    assert response.status_code == 400
    assert field_errors(response).keys() == {"Idempotency-Key"}


@pytest.mark.parametrize(
    "key",
    ["x" * 255, "!~", '"', '"a', f'"{"x" * 253}"', "8e03978e-40d5-43dd-bc93-6894a57f9324", 'a"b'],
)
async def test_any_visible_ascii_is_a_key(api: httpx.AsyncClient, key: str) -> None:
    first = await post(api, NEW_MAILING, key)
    assert matches_schema(key)
    assert first.status_code == 201
    assert is_same(first, await post(api, NEW_MAILING, key))
