"""Invalid ids, queries, methods and paths are refused and leave no trace."""

from collections import defaultdict

import httpx
import pytest
from tests.hostile.surface import LISTS, METHODS_OF, WITH_ID
from tests.hostile.trace import assert_is_problem


@pytest.mark.parametrize(
    "invalid",
    [
        *("0", "-1", 10**30, 2**63, 2**53, "9" * 5000, "x", "1.5", "1e3"),
        *("%00", "1%00", "%ff", "%20", "+1", "%2B1", "001", "1_0", "%201", "1%20", "-0"),
        *("\u0661", "\u0967", "\uff11", "\U0001d7cf", "1%09"),
    ],
    ids=lambda invalid: str(invalid)[:10],
)
@pytest.mark.parametrize(("method", "path"), WITH_ID)
@pytest.mark.usefixtures("unchanged")
async def test_an_invalid_id_is_refused(
    api: httpx.AsyncClient, method: str, path: str, invalid: object
) -> None:
    response = await api.request(
        method,
        path.format_map(defaultdict(lambda: invalid)),
        json={} if method == "PATCH" else None,
    )
    assert_is_problem(response, 400, 404)


@pytest.mark.parametrize("name", ["%00", "%ff", "%ed%a0%80", "", "limit%00", "LIMIT", "a" * 10_000])
@pytest.mark.parametrize("path", LISTS)
@pytest.mark.usefixtures("unchanged")
async def test_an_invalid_query_parameter_is_refused(
    api: httpx.AsyncClient, ids: dict[str, int | str], path: str, name: str
) -> None:
    assert_is_problem(await api.get(f"{path.format(**ids)}?{name}=1"), 400)


@pytest.mark.usefixtures("unchanged")
async def test_long_and_unusual_headers_are_accepted(api: httpx.AsyncClient) -> None:
    response = await api.get(
        "/clients", headers=[(b"Accept", b"x" * 100_000), (b"X-A", b"\x7f\xff\t")]
    )
    assert response.status_code == 200


ALL_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "NOSUCH"}


@pytest.mark.parametrize(
    ("path", "allowed", "method"),
    [
        (path, allowed, method)
        for path, allowed in METHODS_OF.items()
        for method in sorted(ALL_METHODS - allowed)
    ],
)
@pytest.mark.usefixtures("unchanged")
async def test_another_method_is_405_with_the_allowed_methods(
    api: httpx.AsyncClient, ids: dict[str, int | str], path: str, allowed: set[str], method: str
) -> None:
    response = await api.request(method, path.format(**ids))
    assert_is_problem(response, 405)
    assert set(response.headers["allow"].split(", ")) - {"HEAD", "OPTIONS"} == allowed


@pytest.mark.parametrize("path", [path for path, methods in METHODS_OF.items() if "GET" in methods])
@pytest.mark.usefixtures("unchanged")
async def test_head_has_no_body_and_changes_nothing(
    api: httpx.AsyncClient, ids: dict[str, int | str], path: str
) -> None:
    response = await api.head(path.format(**ids))
    assert response.status_code in {200, 405}
    assert response.content == b""


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
        "/api/v1/gateways/1/2/3",
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
@pytest.mark.usefixtures("unchanged")
async def test_an_unknown_path_is_404(api: httpx.AsyncClient, method: str, path: str) -> None:
    assert_is_problem(await api.request(method, f"http://mailer{path}"), 404, 405)


@pytest.mark.parametrize(
    "invalid",
    ["%2B1", "001", "1_0", "1.0", "1e2", "-0", "%201", "\u0661", "\uff11", "0x1", "1%00", ""],
)
@pytest.mark.parametrize("name", ["limit", "before", "after"])
@pytest.mark.usefixtures("unchanged")
async def test_a_number_in_a_query_has_one_notation(
    api: httpx.AsyncClient, name: str, invalid: str
) -> None:
    assert_is_problem(await api.get(f"/clients?{name}={invalid}"), 400)


@pytest.mark.usefixtures("unchanged")
async def test_a_query_of_many_parameters_is_refused(api: httpx.AsyncClient) -> None:
    assert_is_problem(await api.get("/clients?" + "&".join(["tag=a"] * 2_000)), 400)


@pytest.mark.parametrize(
    "path",
    [
        *("%00", "pages.css%00", "pages.css/x", "a" * 300, "a/" * 300, "", "."),
        *("../__init__.py", "%2e%2e/app.py", "swagger-ui", "swagger-ui/", "%ff", "nope.css"),
        *("x" * 5000, "//etc/passwd", "%2fetc%2fpasswd", "pages.css%2f..%2fpages.css", "~", "é"),
    ],
    ids=lambda path: path[:30],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.usefixtures("unchanged")
async def test_an_unknown_static_file_is_404_and_reveals_no_path(
    api: httpx.AsyncClient, method: str, path: str
) -> None:
    response = await api.request(method, f"http://mailer/static/{path}")
    if method == "GET":
        assert_is_problem(response, 404)
        assert "/" not in response.json()["detail"]
    assert response.status_code == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.usefixtures("unchanged")
async def test_a_static_file_is_served(api: httpx.AsyncClient, method: str) -> None:
    for name in ("pages.css", "swagger-ui/swagger-ui.css"):
        response = await api.request(method, f"http://mailer/static/{name}")
        assert response.status_code == 200
        assert bool(response.content) == (method == "GET")  # HEAD has no body
