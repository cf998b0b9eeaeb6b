"""What a careless or hostile client sends is refused as a problem, and leaves no trace."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from mailer.db.schema import metadata

JSON = {"Content-Type": "application/json"}
CLIENT = {"phone": "79161234567", "tag": "vip"}
MAILING = {
    "datetime_start": "2030-01-01T00:00:00Z",
    "datetime_end": "2031-01-01T00:00:00Z",
    "text": "Hello",
}
WRITES = [
    ("POST", "/clients"),
    ("PATCH", "/clients/{client}"),
    ("POST", "/mailings"),
    ("PATCH", "/mailings/{mailing}"),
]
CONTROLS = ("pause", "resume", "cancel", "retry")
CALLS_WITH_A_BODY = [*WRITES, *(("POST", f"/mailings/{{mailing}}/{call}") for call in CONTROLS)]
"""Those of control calls may be empty."""
WITH_ID = [
    *(("/clients/{}", method) for method in ("GET", "PATCH", "DELETE")),
    *(("/mailings/{}", method) for method in ("GET", "PATCH", "DELETE")),
    ("/mailings/{}/messages", "GET"),
    *((f"/mailings/{{}}/{call}", "POST") for call in CONTROLS),
]
LISTS = {
    "/clients": ("operator_code", "tag", "time_zone", "phone", "limit", "before", "after"),
    "/mailings": ("status", "limit", "before", "after"),
    "/mailings/{mailing}/messages": ("status", "reason", "client_id", "limit", "before", "after"),
}
QUERIES = [(path, name) for path, names in LISTS.items() for name in names]


@pytest.fixture(scope="module")
def engine(shared_engine: AsyncEngine) -> AsyncEngine:
    """One database, never emptied: nothing here may leave a trace."""
    return shared_engine


@pytest.fixture(scope="module")
def api(application: httpx.AsyncClient) -> httpx.AsyncClient:
    return application


@pytest.fixture(scope="module")
async def ids(api: httpx.AsyncClient) -> dict[str, int]:
    """A client and a mailing to aim at."""
    return {
        "client": (await api.post("/clients", json=CLIENT)).json()["id"],
        "mailing": (await api.post("/mailings", json=MAILING)).json()["id"],
    }


@pytest.fixture
async def stored(engine: AsyncEngine, ids: dict[str, int]) -> AsyncIterator[None]:
    """Every row of every table is after the test what it was before it."""
    assert ids
    before = await contents(engine)
    yield
    assert await contents(engine) == before


async def contents(engine: AsyncEngine) -> list[list[tuple[Any, ...]]]:
    async with engine.connect() as connection:
        return [
            sorted(map(tuple, await connection.execute(select(table))), key=str)
            for table in metadata.sorted_tables
        ]


def assert_is_problem(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in statuses
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail"} <= problem.keys()
    assert problem["status"] == answer.status_code


def fields(answer: httpx.Response) -> set[str]:
    return {error["field"] for error in answer.json()["errors"]}


# ---- ids ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    ["0", "-1", 10**30, 2**63, 2**53, "9" * 5000, "x", "1.5", "1e3", "%00", "1%00", "%ff", "%20"],
    ids=lambda bad: str(bad)[:10],
)
@pytest.mark.parametrize(("path", "method"), WITH_ID)
@pytest.mark.usefixtures("stored")
async def test_an_id_that_cannot_be_is_refused(
    api: httpx.AsyncClient, method: str, path: str, bad: object
) -> None:
    answer = await api.request(method, path.format(bad), json={} if method == "PATCH" else None)
    assert_is_problem(answer, 400, 404)


# ---- text -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        *(
            ("/clients", field, {**CLIENT, "phone": "79160000000", field: "\0"})
            for field in ("phone", "operator_code", "tag", "time_zone")
        ),
        ("/clients", "tag", {"phone": "79160000000", "tag": "a\0b"}),
        ("/clients", "a\0b", {"phone": "79160000000", "a\0b": 1}),
        *(
            ("/mailings", field, {**MAILING, field: "\0"})
            for field in (
                "datetime_start",
                "datetime_end",
                "send_interval_time_start",
                "send_interval_time_end",
                "text",
                "client_filter",
                "on_unknown",
            )
        ),
        ("/mailings", "text", {**MAILING, "text": "a\0b"}),
        ("/mailings", "client_filter", {**MAILING, "client_filter": "vip\0"}),
        *(
            ("/mailings", f"client_filter.{field}", {**MAILING, "client_filter": {field: ["\0"]}})
            for field in ("operator_codes", "tags", "time_zones")
        ),
    ],
)
@pytest.mark.usefixtures("stored")
async def test_nul_in_a_field_is_refused_by_its_name(
    api: httpx.AsyncClient, path: str, field: str, body: dict[str, Any]
) -> None:
    answer = await api.post(path, json=body)
    assert_is_problem(answer, 400)
    assert field in fields(answer)


@pytest.mark.parametrize(
    "text",
    [
        b'"\\ud800"',
        b'"a\\udc00b"',
        b'"\\udc00\\ud800"',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b'"\xc0\x80"',
    ],
)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/clients", b'{"phone": %s}'),
        ("/clients", b'{"phone": "79160000000", "operator_code": %s}'),
        ("/clients", b'{"phone": "79160000000", "tag": %s}'),
        ("/clients", b'{"phone": "79160000000", "time_zone": %s}'),
        ("/clients", b'{"phone": "79160000000", %s: 1}'),
        ("/mailings", json.dumps(MAILING).encode().replace(b'"Hello"', b"%s")),
        *(
            ("/mailings", json.dumps(MAILING).encode()[:-1] + b', "client_filter": ' + given + b"}")
            for given in (b"%s", b'{"tags": [%s]}', b'{"time_zones": [%s]}', b"{%s: 1}")
        ),
    ],
)
@pytest.mark.usefixtures("stored")
async def test_lone_surrogates_and_broken_utf8_are_refused(
    api: httpx.AsyncClient, path: str, body: bytes, text: bytes
) -> None:
    assert_is_problem(await api.post(path, content=body % text, headers=JSON), 400)


@pytest.mark.parametrize(
    "value", ["%00", "a%00b", "%ff", "%c0%80", "%ed%a0%80", "%F0%9F"], ids=lambda value: value[1:]
)
@pytest.mark.parametrize(("path", "name"), QUERIES)
@pytest.mark.usefixtures("stored")
async def test_nul_and_broken_utf8_in_a_query_are_refused_by_the_parameters_name(
    api: httpx.AsyncClient, ids: dict[str, int], path: str, name: str, value: str
) -> None:
    answer = await api.get(f"{path.format(**ids)}?{name}={value}")
    assert_is_problem(answer, 400)
    assert fields(answer) == {name}


@pytest.mark.parametrize("name", ["%00", "%ff", "%ed%a0%80", "", "limit%00", "LIMIT", "a" * 10_000])
@pytest.mark.parametrize("path", LISTS)
@pytest.mark.usefixtures("stored")
async def test_a_query_parameter_that_cannot_be_is_refused(
    api: httpx.AsyncClient, ids: dict[str, int], path: str, name: str
) -> None:
    assert_is_problem(await api.get(f"{path.format(**ids)}?{name}=1"), 400)


@pytest.mark.parametrize(("path", "name"), QUERIES)
@pytest.mark.usefixtures("stored")
async def test_a_query_as_long_as_a_url_can_be_is_refused(
    api: httpx.AsyncClient, ids: dict[str, int], path: str, name: str
) -> None:
    answer = await api.get(f"{path.format(**ids)}?{name}={'9' * 60_000}")
    assert_is_problem(answer, 400)
    assert fields(answer) == {name}


@pytest.mark.usefixtures("stored")
async def test_a_header_may_be_long_and_strange(api: httpx.AsyncClient) -> None:
    answer = await api.get(
        "/clients", headers=[(b"Accept", b"x" * 100_000), (b"X-A", b"\x7f\xff\t")]
    )
    assert answer.status_code == 200


# ---- bodies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        b" ",
        b"x",
        b"null",
        b"[]",
        b"[{}]",
        b"1",
        b'"text"',
        b"true",
        b"NaN",
        b"{",
        b"{} {}",
        b"{'phone': 1}",
        b'{"phone": 1,}',
        b'// comment\n{"phone": 1}',
        b"\xef\xbb\xbf{}",
        '{"phone": "79160000000"}'.encode("utf-16"),
        b"\x00",
        b"phone=79160000000",
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"tag":' * 100_000 + b"1" + b"}" * 100_000, id="deep objects"),
        pytest.param(b'{"tag":' + b"[" * 400 + b"]" * 400 + b"}", id="deep value"),
        pytest.param(b'{"client_filter":' * 400 + b"{}" + b"}" * 400, id="deep filter"),
        pytest.param(b'{"phone":' + b"9" * 10_000 + b"}", id="long number"),
        pytest.param(b'{"x":"' + b"a" * 1_000_000 + b'"}', id="megabyte"),
    ],
)
@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.usefixtures("stored")
async def test_a_body_that_is_no_json_object_of_known_fields_is_refused(
    api: httpx.AsyncClient, ids: dict[str, int], method: str, path: str, body: bytes
) -> None:
    answer = await api.request(method, path.format(**ids), content=body, headers=JSON)
    assert_is_problem(answer, 400)


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.usefixtures("stored")
async def test_an_empty_body_is_named_as_such_and_not_as_a_field(
    api: httpx.AsyncClient, ids: dict[str, int], method: str, path: str
) -> None:
    answer = await api.request(method, path.format(**ids), headers=JSON)
    assert_is_problem(answer, 400)
    assert "'data'" not in answer.text


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" + "0" * 400, "1e-400", "-0"]
)
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/clients/{client}", "phone"),
        ("/clients/{client}", "tag"),
        ("/mailings/{mailing}", "datetime_start"),
        ("/mailings/{mailing}", "text"),
        ("/mailings/{mailing}", "client_filter"),
    ],
)
@pytest.mark.usefixtures("stored")
async def test_a_number_is_no_text_however_large(
    api: httpx.AsyncClient, ids: dict[str, int], path: str, field: str, value: str
) -> None:
    content = f'{{"{field}": {value}}}'.encode()
    answer = await api.patch(path.format(**ids), content=content, headers=JSON)
    assert_is_problem(answer, 400)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "garbage",
        "text/plain",
        "text/json",
        "application/xml",
        "application/msgpack",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
    ],
)
@pytest.mark.parametrize(("method", "path"), CALLS_WITH_A_BODY)
@pytest.mark.usefixtures("stored")
async def test_a_body_of_another_type_is_415(
    api: httpx.AsyncClient, ids: dict[str, int], method: str, path: str, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = await api.request(
        method, path.format(**ids), content=b'{"text": "changed"}', headers=headers
    )
    assert_is_problem(answer, 415)


@pytest.mark.parametrize("content_type", ["APPLICATION/JSON", "application/json; charset=utf-8"])
@pytest.mark.usefixtures("stored")
async def test_a_content_type_is_read_without_case_and_parameters(
    api: httpx.AsyncClient, content_type: str
) -> None:
    headers = {"Content-Type": content_type}
    answer = await api.post("/clients", content=b'{"phone": "x"}', headers=headers)
    assert fields(answer) == {"phone"}


async def ten_megabytes() -> AsyncIterator[bytes]:
    yield b'{"text": "'
    for _ in range(10):
        yield b"x" * 1_000_000
    yield b'"}'


@pytest.mark.parametrize("is_announced", [True, False])
@pytest.mark.parametrize(("method", "path"), CALLS_WITH_A_BODY)
@pytest.mark.usefixtures("stored")
async def test_a_body_of_ten_megabytes_is_413(
    api: httpx.AsyncClient,
    ids: dict[str, int],
    method: str,
    path: str,
    is_announced: bool,  # noqa: FBT001  # given by the table
) -> None:
    content: Any = b"".join([part async for part in ten_megabytes()])
    answer = await api.request(
        method,
        path.format(**ids),
        content=content if is_announced else ten_megabytes(),
        headers=JSON,
    )
    assert_is_problem(answer, 413)


@pytest.mark.parametrize("path", ["/clients", "/mailings"])
@pytest.mark.usefixtures("stored")
async def test_a_body_where_none_belongs_changes_nothing(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.request("GET", path, content=b'{"phone": "\xff"}', headers=JSON)
    assert answer.status_code == 200


# ---- methods and paths ----------------------------------------------------------------------


ALLOWED = [
    ("/clients", {"GET", "POST"}),
    ("/clients/{client}", {"GET", "PATCH", "DELETE"}),
    ("/mailings", {"GET", "POST"}),
    ("/mailings/{mailing}", {"GET", "PATCH", "DELETE"}),
    ("/mailings/{mailing}/messages", {"GET"}),
    *((f"/mailings/{{mailing}}/{call}", {"POST"}) for call in CONTROLS),
    *(("/statistics", {"GET"}), ("/mailings/{mailing}/statistics", {"GET"}), ("/gateway", {"GET"})),
]
METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "NOSUCH"}


@pytest.mark.parametrize(
    ("path", "allowed", "method"),
    [(path, allowed, method) for path, allowed in ALLOWED for method in sorted(METHODS - allowed)],
)
@pytest.mark.usefixtures("stored")
async def test_another_method_is_405_and_told_which_are_allowed(
    api: httpx.AsyncClient, ids: dict[str, int], path: str, allowed: set[str], method: str
) -> None:
    answer = await api.request(method, path.format(**ids))
    assert_is_problem(answer, 405)
    assert set(answer.headers["allow"].split(", ")) - {"HEAD", "OPTIONS"} == allowed


@pytest.mark.parametrize(
    "path", ["/clients", "/clients/{client}", "/mailings/{mailing}", "/mailings/{mailing}/messages"]
)
@pytest.mark.usefixtures("stored")
async def test_head_has_no_body_and_does_no_harm(
    api: httpx.AsyncClient, ids: dict[str, int], path: str
) -> None:
    answer = await api.head(path.format(**ids))
    assert answer.status_code in {200, 405}
    assert answer.content == b""


@pytest.mark.parametrize(
    "path",
    [
        "/api",
        "/api/v1",
        "/api/v1/",
        "/api/v1/nope",
        "/api/v1/client",
        "/api/v1/clientsx",
        "/api/v1/clients/1/x",
        "/api/v1/mailings/1/message",
        "/api/v1/mailings/1/messages/1",
        "/api/v1/mailings/1/stop",
        "/api/v1/mailings/pause",
        "/api/v1/mailings/1/pause/1",
        "/api/v1/gateway/1",
        "/api/v2/clients",
        "/API/V1/CLIENTS",
        "/nope",
        "/%00",
        "/%ff",
        "/..%2f..%2fetc/passwd",
        "/static/..%2f..%2f..%2fetc/passwd",
        "/" + "a" * 60_000,
    ],
    ids=lambda path: path[:40],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.usefixtures("stored")
async def test_an_unknown_path_is_404(api: httpx.AsyncClient, method: str, path: str) -> None:
    assert_is_problem(await api.request(method, f"http://mailer{path}"), 404, 405)


# ---- anything -------------------------------------------------------------------------------

anything = st.recursive(
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
nearly_right: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "clients": {
        "phone": st.from_regex(r"7[0-9]{10}$"),  # with a line's end now and then
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
        | st.fixed_dictionaries({"tags": st.lists(anything)}),
        "on_unknown": st.sampled_from(["retry", "hold"]),
    },
}
random_calls = settings(
    max_examples=100,
    deadline=None,  # CI's machines pause
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # none of them keeps a state
)


@st.composite
def bodies(draw: st.DrawFn, kind: str) -> Any:
    """Draw a body: anything at all, or known fields of which some are wrong."""
    if draw(st.integers(0, 4)) == 0:
        return draw(anything)
    known = nearly_right[kind]
    body = draw(st.fixed_dictionaries({}, optional=known) | st.fixed_dictionaries(known))
    for name in draw(st.lists(st.sampled_from([*known, "x"]), max_size=2)):
        body[name] = draw(anything)
    return body


@pytest.mark.parametrize(("method", "path"), WRITES)
@random_calls
@given(data=st.data())
async def test_no_body_breaks_anything_and_a_refused_one_leaves_no_trace(  # noqa: PLR0913, PLR0917  # what a call needs
    api: httpx.AsyncClient,
    engine: AsyncEngine,
    ids: dict[str, int],
    method: str,
    path: str,
    data: st.DataObject,
) -> None:
    body = data.draw(bodies(path.split("/")[1]))
    before = await contents(engine)
    content = json.dumps(body).encode()  # surrogates as \uXXXX, and NaN as only Python has it
    with capture_logs() as logs:  # a traceback printed a hundred times would take minutes
        answer = await api.request(method, path.format(**ids), content=content, headers=JSON)
    assert all(line["log_level"] == "info" for line in logs)
    if answer.status_code not in {200, 201}:
        assert_is_problem(answer, 400, 409)
        assert await contents(engine) == before
