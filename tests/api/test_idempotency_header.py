"""What is an Idempotency-Key, and what is none."""

import re
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import NEW, errors
from tests.api.repeats import MAILINGS, NEW_MAILING, is_same, post
from tests.sample import value

from mailer.web.openapi import IDEMPOTENCY_KEY


def is_described(key: str) -> bool:
    """Whether a key is one by the schema."""
    schema: Any = IDEMPOTENCY_KEY["schema"]
    is_long_enough = schema["minLength"] <= len(key) <= schema["maxLength"]
    return is_long_enough and re.search(schema["pattern"], key) is not None


@pytest.mark.parametrize("given", ['"a"', "a"])
async def test_quotes_around_a_key_do_not_count(api: httpx.AsyncClient, given: str) -> None:
    first = await post(api, NEW_MAILING, "a")
    assert is_same(first, await post(api, NEW_MAILING, given))


@pytest.mark.parametrize(
    "given", ["", '""', "a b", "x" * 256, f'"{"x" * 254}"', "ключ", "a\x7f", "a\tb", '"a b"']
)
async def test_what_is_no_key_is_400(
    engine: AsyncEngine, api: httpx.AsyncClient, given: str
) -> None:
    headers = {b"Idempotency-Key": given.encode()}
    answer = await api.post("/mailings", json=NEW, headers=headers)
    assert answer.status_code == 400
    assert errors(answer) == {
        "Idempotency-Key": "must come once, as 1 to 255 visible ASCII characters"
    }
    assert await value(engine, MAILINGS) == 0
    assert not is_described(given)


async def test_two_keys_in_a_request_are_400(api: httpx.AsyncClient) -> None:
    twice = [(b"Idempotency-Key", b"a"), (b"Idempotency-Key", b"b")]
    answer = await api.post("/mailings", json=NEW, headers=twice)
    assert answer.status_code == 400
    assert errors(answer).keys() == {"Idempotency-Key"}


@pytest.mark.parametrize(
    "given",
    ["x" * 255, "!~", '"', '"a', f'"{"x" * 253}"', "8e03978e-40d5-43dd-bc93-6894a57f9324", 'a"b'],
)
async def test_any_visible_ascii_is_a_key(api: httpx.AsyncClient, given: str) -> None:
    first = await post(api, NEW_MAILING, given)
    assert is_described(given)
    assert first.status_code == 201
    assert is_same(first, await post(api, NEW_MAILING, given))
