"""Random bodies cause no error of the server."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from tests.hostile.surface import WRITES
from tests.hostile.trace import assert_is_problem, contents

from mailer.webhook.model import EVENT_TYPES

JSON = {"Content-Type": "application/json"}
any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(st.characters(), max_size=20)  # surrogates included
    | st.sampled_from(["", "vip", "912", "UTC", "09:00", "09:00\n", "9" * 11, "\0", "retry"])
    | st.datetimes(timezones=st.timezones() | st.none()).map(lambda moment: moment.isoformat()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["operator_codes", "tags", "time_zones", "x"]), inner)
    ),
    max_leaves=8,
)
nearly_valid_fields: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "clients": {
        "phone": st.from_regex(r"7[0-9]{10}$"),  # sometimes with a line feed at the end
        "operator_code": st.from_regex(r"[0-9]{3}$"),
        "tag": st.text(min_size=1, max_size=64) | st.none(),
        "time_zone": st.timezone_keys(),
    },
    "mailings": {
        "datetime_start": st.just("2030-01-01T00:00:00Z"),
        "datetime_end": st.sampled_from(["2031-01-01T00:00:00Z", "2029-01-01T00:00:00+03:00"]),
        "send_interval_time_start": st.from_regex(r"^(0[0-9]|2[0-3]):[0-5][0-9]$"),
        "send_interval_time_end": st.from_regex(r"^1[0-9]:[0-5][0-9](:[0-5][0-9])?$"),
        "text": st.text(min_size=1, max_size=50),
        "client_filter": st.none()
        | st.text()
        | st.fixed_dictionaries({"tags": st.lists(any_json)}),
        "on_unknown": st.sampled_from(["retry", "hold"]),
    },
    "lists": {
        "name": st.text(min_size=1, max_size=100),
        "phones": st.lists(st.from_regex(r"7[0-9]{10}$"), max_size=3),
        "ids": st.lists(st.integers(1, 3), max_size=3),
    },
    "opt-outs": {"phone": st.from_regex(r"7[0-9]{10}$")},
    "replies": {"text": st.text(min_size=1, max_size=50)},
    "webhooks": {
        "name": st.text(min_size=1, max_size=64),
        "url": st.sampled_from(["https://93.184.216.34/", "https://10.0.0.1/", "http://[::1]/"]),
        "events": st.lists(st.sampled_from([*EVENT_TYPES, "x"]), max_size=3),
        "enabled": st.booleans(),
        "delivery_id": st.integers(1, 3),
        "failed_since": st.just("2030-01-01T00:00:00Z"),
    },
}
random_calls = settings(
    max_examples=100,
    deadline=None,  # CI's machines pause
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the fixtures have no state
)


@st.composite
def bodies(draw: st.DrawFn, resource: str) -> Any:
    """Draw a body for objects of a kind: any JSON, or known fields of which some are invalid."""
    if draw(st.integers(0, 4)) == 0:  # one body in five
        return draw(any_json)
    fields = nearly_valid_fields[resource]
    body = draw(st.fixed_dictionaries({}, optional=fields) | st.fixed_dictionaries(fields))
    for name in draw(st.lists(st.sampled_from([*fields, "x"]), max_size=2)):
        body[name] = draw(any_json)
    return body


@pytest.mark.parametrize(("method", "path"), WRITES)
@random_calls
@given(data=st.data())
async def test_random_bodies_cause_no_server_error_and_refused_ones_leave_no_trace(  # noqa: PLR0913, PLR0917  # fixtures and parameters
    api: httpx.AsyncClient,
    engine: AsyncEngine,
    ids: dict[str, int | str],
    method: str,
    path: str,
    data: st.DataObject,
) -> None:
    resource = path.split("/")[1]  # such as mailings
    body = data.draw(bodies(resource))
    before = await contents(engine)
    content = json.dumps(body).encode()  # surrogates as \uXXXX, NaN as Python writes it
    with capture_logs() as logs:  # printing a hundred tracebacks takes minutes
        response = await api.request(method, path.format(**ids), content=content, headers=JSON)
    assert all(line["log_level"] == "info" for line in logs)
    if response.status_code not in {200, 201, 204}:
        # a body may name another object, as of a delivery
        assert_is_problem(response, 400, 404, 409)
        assert await contents(engine) == before
