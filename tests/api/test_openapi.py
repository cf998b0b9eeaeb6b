"""The OpenAPI schema of the whole application, at /openapi.json, describes the API completely."""

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from tests.asgi_client import inside

from mailer.app import create_app
from mailer.client.lists.model import ListMembers, NewList
from mailer.client.model import ClientChange, NewClient
from mailer.gateway_control.testing_model import MailingTest
from mailer.mailing.model import MailingChange, NewMailing
from mailer.opt_out.model import OptOutPhone
from mailer.statuses import MAILING_STATUSES
from mailer.validation import Input, check
from mailer.webhook.model import NewWebhook, Redelivery, WebhookChange

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
"""A time before all times in examples, which must be in the future."""
METHODS = {"get", "post", "patch", "put", "delete"}
ACTIONS = ("launch", "pause", "resume", "cancel", "retry")
GATEWAY_ACTIONS = ("pause", "resume", "release-unknown")
WEBHOOK_ACTIONS = ("rotate-secret", "test", "redeliver")
Call = tuple[str, str]
"""Method and path."""
CALLS: dict[Call, str] = {
    ("post", "/api/v1/clients"): "201",
    ("get", "/api/v1/clients"): "200",
    ("get", "/api/v1/clients/{client_id}"): "200",
    ("patch", "/api/v1/clients/{client_id}"): "200",
    ("delete", "/api/v1/clients/{client_id}"): "204",
    ("post", "/api/v1/mailings"): "201",
    ("get", "/api/v1/mailings"): "200",
    ("get", "/api/v1/mailings/{mailing_id}"): "200",
    ("patch", "/api/v1/mailings/{mailing_id}"): "200",
    ("delete", "/api/v1/mailings/{mailing_id}"): "204",
    ("get", "/api/v1/mailings/{mailing_id}/messages"): "200",
    ("post", "/api/v1/mailings/{mailing_id}/launch"): "200",
    ("get", "/api/v1/messages"): "200",
    ("get", "/api/v1/messages/{message_id}"): "200",
    ("get", "/api/v1/mailings/{mailing_id}/forecast"): "200",
    ("get", "/api/v1/mailings/{mailing_id}/statistics"): "200",
    ("get", "/api/v1/mailings/{mailing_id}/versions"): "200",
    **{("post", f"/api/v1/mailings/{{mailing_id}}/{call}"): "200" for call in ACTIONS},
    ("post", "/api/v1/mailings/{mailing_id}/test"): "200",
    ("post", "/api/v1/clients/import"): "200",
    ("get", "/api/v1/lists"): "200",
    ("post", "/api/v1/lists"): "201",
    ("get", "/api/v1/lists/{list_id}"): "200",
    ("delete", "/api/v1/lists/{list_id}"): "204",
    **{(method, "/api/v1/lists/{list_id}/clients"): "200" for method in ("get", "post", "delete")},
    ("get", "/api/v1/opt-outs"): "200",
    ("post", "/api/v1/opt-outs"): "201 200",
    ("post", "/api/v1/opt-outs/delete"): "204",
    ("post", "/api/v1/opt-outs/import"): "200",
    ("delete", "/api/v1/opt-outs/{opt_out_id}"): "204",
    ("get", "/api/v1/statistics"): "200",
    ("get", "/api/v1/gateways"): "200",
    ("get", "/api/v1/gateways/{name}"): "200",
    **{("post", f"/api/v1/gateways/{{name}}/{call}"): "200" for call in GATEWAY_ACTIONS},
    ("get", "/api/v1/replies"): "200",
    ("get", "/api/v1/replies/{reply_id}"): "200",
    ("post", "/api/v1/replies/{reply_id}/read"): "200",
    ("post", "/api/v1/replies/{reply_id}/answer"): "201",
    ("get", "/api/v1/audit"): "200",
    ("post", "/api/v1/webhooks"): "201",
    ("get", "/api/v1/webhooks"): "200",
    ("get", "/api/v1/webhooks/{webhook_id}"): "200",
    ("patch", "/api/v1/webhooks/{webhook_id}"): "200",
    ("delete", "/api/v1/webhooks/{webhook_id}"): "204",
    ("get", "/api/v1/webhooks/{webhook_id}/deliveries"): "200",
    **{("post", f"/api/v1/webhooks/{{webhook_id}}/{call}"): "200" for call in WEBHOOK_ACTIONS},
}
"""Every call of the API, and the statuses of its successful responses."""
QUERIES = {
    "/api/v1/clients": {
        *("operator_code", "tag", "time_zone", "phone", "list", "opted_out"),
        *("limit", "before", "after"),
    },
    "/api/v1/lists": {"search", "limit", "before", "after"},
    "/api/v1/lists/{list_id}/clients": {"limit", "before", "after"},
    "/api/v1/opt-outs": {"phone", "client_id", "limit", "before", "after"},
    "/api/v1/mailings": {
        *("status", "label", "search", "from", "to", "sort"),
        *("limit", "before", "after", "key"),
    },
    "/api/v1/mailings/{mailing_id}/messages": {
        *("status", "reason", "client_id", "gateway", "limit", "before", "after"),
    },
    "/api/v1/messages": {"phone", "client_id", "status", "limit", "before", "after"},
    "/api/v1/replies": {
        *("phone", "client_id", "mailing_id", "unread", "limit", "before", "after"),
    },
    "/api/v1/audit": {
        *("actor_kind", "actor_id", "action", "target_kind", "target_id"),
        *("limit", "before", "after"),
    },
    "/api/v1/webhooks/{webhook_id}/deliveries": {"status", "limit", "before", "after"},
}
"""The query parameters of each list."""
BODIES: dict[Call, type[Input]] = {
    ("post", "/api/v1/clients"): NewClient,
    ("patch", "/api/v1/clients/{client_id}"): ClientChange,
    ("post", "/api/v1/lists"): NewList,
    ("post", "/api/v1/lists/{list_id}/clients"): ListMembers,
    ("delete", "/api/v1/lists/{list_id}/clients"): ListMembers,
    ("post", "/api/v1/opt-outs"): OptOutPhone,
    ("post", "/api/v1/opt-outs/delete"): OptOutPhone,
    ("post", "/api/v1/mailings"): NewMailing,
    ("patch", "/api/v1/mailings/{mailing_id}"): MailingChange,
    ("post", "/api/v1/mailings/{mailing_id}/test"): MailingTest,
    ("post", "/api/v1/webhooks"): NewWebhook,
    ("patch", "/api/v1/webhooks/{webhook_id}"): WebhookChange,
    ("post", "/api/v1/webhooks/{webhook_id}/redeliver"): Redelivery,
}
"""The model of each body in JSON."""


@pytest.fixture(scope="module")
async def schema() -> dict[str, Any]:
    """The schema as clients of the API read it; no database is needed."""
    app = create_app(create_async_engine("postgresql+asyncpg://"))
    transport = inside(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as api:
        content: dict[str, Any] = (await api.get("/openapi.json")).json()
    return content


@pytest.fixture(scope="module")
def operations(schema: dict[str, Any]) -> dict[Call, dict[str, Any]]:
    """What the schema says about each call."""
    return {
        (method, path): operation
        for path, item in schema["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def resolve(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Return a part of the schema, or the part to which it refers: `#/components/...`."""
    if "$ref" not in part:
        return part
    target = schema
    for key in part["$ref"].removeprefix("#/").split("/"):
        target = target[key]
    return target


def references(part: Any) -> set[str]:
    """Return every reference in a part of the schema."""
    if isinstance(part, list):
        return set().union(*map(references, part))
    if not isinstance(part, dict):
        return set()
    own_reference = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
    return own_reference.union(*map(references, part.values()))


def test_every_reference_has_a_target(schema: dict[str, Any]) -> None:
    assert schema["openapi"].startswith("3.1")
    for reference in references(schema):
        assert resolve(schema, {"$ref": reference})


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_every_call_of_the_api_is_described(
    operations: dict[Call, dict[str, Any]], call: Call
) -> None:
    operation = operations[call]
    assert operation["summary"]
    assert operation["description"]
    assert [status for status in operation["responses"] if status < "400"] == CALLS[call].split()


def test_no_other_call_is_described(
    operations: dict[Call, dict[str, Any]],
) -> None:
    described = {(method, path) for method, path in operations if path.startswith("/api/")}
    assert described == CALLS.keys()


def test_operation_ids_are_unique(
    operations: dict[Call, dict[str, Any]],
) -> None:
    names = [operation["operationId"] for operation in operations.values()]
    assert len(set(names)) == len(names)


def test_the_parameters_of_a_route_are_unique(operations: dict[Call, dict[str, Any]]) -> None:
    for call, operation in operations.items():
        keys = [(each["name"], each["in"]) for each in operation.get("parameters", [])]
        assert len(set(keys)) == len(keys), call


@pytest.mark.parametrize("path", QUERIES)
def test_every_query_parameter_is_described(
    operations: dict[Call, dict[str, Any]], path: str
) -> None:
    parameters = {
        parameter["name"]: parameter
        for parameter in operations["get", path]["parameters"]
        if parameter["in"] == "query"
    }
    assert parameters.keys() == QUERIES[path]
    assert not any(parameter.get("required") for parameter in parameters.values())
    limit = parameters["limit"]["schema"]
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, 1000, 100)


def test_every_route_declares_its_problems(
    schema: dict[str, Any], operations: dict[Call, dict[str, Any]]
) -> None:
    for (method, path), operation in operations.items():
        expected = {"400", "503"}
        expected |= {"404"} if "{" in path else set()
        expected |= {"408", "413", "415"} if method in {"post", "patch"} else set()
        expected |= {"401", "403", "429"} if path.startswith("/api/") else {"401"}
        assert expected <= operation["responses"].keys(), (method, path)
        for status, response in operation["responses"].items():
            if status >= "400":
                media = resolve(schema, response)["content"]
                assert media.keys() == {"application/problem+json"}, (method, path, status)


@pytest.mark.parametrize(
    "call",
    [
        ("post", "/api/v1/clients"),
        ("patch", "/api/v1/clients/{client_id}"),
        ("patch", "/api/v1/mailings/{mailing_id}"),
        ("post", "/api/v1/webhooks"),
        ("post", "/api/v1/lists"),
        ("delete", "/api/v1/lists/{list_id}"),
        *(("post", f"/api/v1/mailings/{{mailing_id}}/{call}") for call in ACTIONS),
    ],
    ids=" ".join,
)
def test_a_route_that_can_conflict_declares_409(
    operations: dict[Call, dict[str, Any]], call: Call
) -> None:
    assert "409" in operations[call]["responses"]


def test_the_api_declares_keys_and_monitoring_declares_an_optional_token(
    schema: dict[str, Any], operations: dict[Call, dict[str, Any]]
) -> None:
    schemes = schema["components"]["securitySchemes"]
    assert {name: (each["type"], each["scheme"]) for name, each in schemes.items()} == {
        "key": ("http", "bearer"),
        "monitoring": ("http", "bearer"),
    }
    for (_, path), operation in operations.items():
        expected: list[dict[str, Any]] = (
            [{"key": []}] if path.startswith("/api/") else [{"monitoring": []}, {}]
        )
        assert operation["security"] == expected, path


def test_problems_declare_the_headers_that_say_how_to_continue(schema: dict[str, Any]) -> None:
    responses = schema["components"]["responses"]
    assert "WWW-Authenticate" in responses["Problem401"]["headers"]
    for status in (429, 503):
        assert responses[f"Problem{status}"]["headers"]["Retry-After"]["schema"]["minimum"] == 1


def test_only_post_requests_take_an_idempotency_key(
    operations: dict[Call, dict[str, Any]],
) -> None:
    for (method, path), operation in operations.items():
        headers = [each for each in operation.get("parameters", []) if each["in"] == "header"]
        expected = ["Idempotency-Key"] if method == "post" else []
        assert [header["name"] for header in headers] == expected, path
        for header in headers:
            assert header["required"] is False
            assert {"408", "409", "413", "415"} <= operation["responses"].keys()


def test_a_problem_has_the_members_of_rfc_9457(schema: dict[str, Any]) -> None:
    problem = schema["components"]["schemas"]["Problem"]
    assert {"type", "title", "status", "detail"} == set(problem["required"])
    assert "errors" in problem["properties"]


def examples_of(schema: dict[str, Any], media: dict[str, Any]) -> list[Any]:
    """Return the examples of a body, from its route or its model."""
    of_route = [example["value"] for example in media.get("examples", {}).values()]
    of_route += [media["example"]] if "example" in media else []
    of_model: list[Any] = resolve(schema, media["schema"]).get("examples", [])
    return of_route + of_model


def test_every_body_has_an_example(
    schema: dict[str, Any], operations: dict[Call, dict[str, Any]]
) -> None:
    for call, operation in operations.items():
        for media in operation.get("requestBody", {"content": {}})["content"].values():
            is_binary = media["schema"].get("format") == "binary"
            assert is_binary or examples_of(schema, media), call


@pytest.mark.parametrize("call", BODIES, ids=" ".join)
def test_an_example_is_valid(
    schema: dict[str, Any],
    operations: dict[Call, dict[str, Any]],
    call: Call,
) -> None:
    media = operations[call]["requestBody"]["content"]["application/json"]
    for example in examples_of(schema, media):
        check(BODIES[call], example, LONG_AGO)


@pytest.mark.parametrize("call", BODIES, ids=" ".join)
def test_a_body_declares_all_fields_and_forbids_others(
    schema: dict[str, Any],
    operations: dict[Call, dict[str, Any]],
    call: Call,
) -> None:
    body = operations[call]["requestBody"]
    assert body["required"] is True
    model = resolve(schema, body["content"]["application/json"]["schema"])
    assert model["additionalProperties"] is False
    assert model["properties"].keys() == set(BODIES[call].__struct_fields__)
    required = {field.name for field in msgspec.structs.fields(BODIES[call]) if field.required}
    assert set(model.get("required", ())) == required


@pytest.mark.parametrize("call", ACTIONS)
def test_an_action_takes_no_body_and_returns_the_mailing(
    operations: dict[Call, dict[str, Any]], call: str
) -> None:
    operation = operations["post", f"/api/v1/mailings/{{mailing_id}}/{call}"]
    assert "requestBody" not in operation
    names = [parameter["name"] for parameter in operation["parameters"]]
    assert names == ["mailing_id", "Idempotency-Key"]
    [media] = operation["responses"]["200"]["content"].values()
    assert media["schema"] == {"$ref": "#/components/schemas/Mailing"}


def test_the_schema_describes_since_when_and_why_a_mailing_is_held(schema: dict[str, Any]) -> None:
    models = schema["components"]["schemas"]
    for name, held, more in (
        ("Mailing", "Hold", {"until", "time_zone"}),
        ("MailingDetail", "Hold", {"until", "time_zone"}),
        ("GatewayDetail", "Outage", set[str]()),
    ):
        assert models[held]["properties"].keys() == {"since", "reason"} | more
        assert {"$ref": f"#/components/schemas/{held}"} in models[name]["properties"]["held"][
            "oneOf"
        ]


def test_an_action_on_a_gateway_takes_no_body(operations: dict[Call, dict[str, Any]]) -> None:
    for call in GATEWAY_ACTIONS:
        operation = operations["post", f"/api/v1/gateways/{{name}}/{call}"]
        assert "requestBody" not in operation
        names = [parameter["name"] for parameter in operation["parameters"]]
        assert names == ["name", "Idempotency-Key"]


@pytest.mark.parametrize(
    "name", ["Client", "Mailing", "MailingDetail", "Message", "GatewayDetail", "AuditEntry"]
)
def test_the_example_of_a_response_has_the_fields_of_a_response(
    schema: dict[str, Any], name: str
) -> None:
    model = schema["components"]["schemas"][name]
    [example] = model["examples"]
    assert example.keys() <= model["properties"].keys()
    fields_without_example = model["properties"].keys() - example.keys()
    assert all("null" in str(model["properties"][field]) for field in fields_without_example)


def test_a_filter_object_forbids_other_fields(schema: dict[str, Any]) -> None:
    lists = schema["components"]["schemas"]["AudienceLists"]
    assert lists["additionalProperties"] is False
    assert lists["properties"].keys() == {"operator_codes", "tags", "time_zones", "lists"}


def test_entries_of_filter_lists_declare_their_rules(schema: dict[str, Any]) -> None:
    lists = schema["components"]["schemas"]["AudienceLists"]["properties"]
    assert lists["operator_codes"]["items"]["pattern"] == "^[0-9]{3}$"
    assert lists["tags"]["items"]["maxLength"] == 64
    assert {each["maxItems"] for each in lists.values()} == {1_000}
    # a filter is an object with these lists, or a text with all its entries
    forms = schema["components"]["schemas"]["NewMailing"]["properties"]["client_filter"]["anyOf"]
    assert {form["maxLength"] for form in forms if form.get("type") == "string"} == {10_000}


def test_patterns_are_valid_in_json_schema(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    assert r"\\ud800" not in text
    assert text.count(json.dumps(r"^[^\x00]*$")) > 10


def test_examples_of_the_fields_make_a_valid_body(schema: dict[str, Any]) -> None:
    for model in (NewClient, NewMailing):
        fields = schema["components"]["schemas"][model.__name__]["properties"]
        body = {
            name: part["examples"][0]
            for name, field in fields.items()
            for part in [field, *field.get("anyOf", ())]
            if "examples" in part
        }
        check(model, body, LONG_AGO)


def test_fields_declare_their_rules(schema: dict[str, Any]) -> None:
    models = schema["components"]["schemas"]
    assert models["NewClient"]["properties"]["phone"]["pattern"] == "^7[0-9]{10}$"
    assert models["NewMailing"]["properties"]["text"]["maxLength"] == 1600
    assert models["NewMailing"]["properties"]["datetime_start"]["format"] == "date-time"
    assert set(models["Mailing"]["properties"]["status"]["enum"]) == set(MAILING_STATUSES)
