"""The OpenAPI schema: what Litestar creates from the handlers, and additions.

The additions are rules of fields, problems, the header Idempotency-Key, and security schemes. Words
of OpenAPI: an operation is a method of a path; a component is a part that others refer to by name.
"""

import re
from collections.abc import Iterable
from dataclasses import fields
from http import HTTPStatus
from typing import Any

import msgspec
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import (
    Components,
    License,
    OpenAPI,
    SecurityRequirement,
    SecurityScheme,
)

from mailer.validation import STORABLE, Input
from mailer.web.docs import docs_plugins, docs_router
from mailer.web.problems import MEDIA_TYPE, Problem

SCHEMA_REFERENCE = "#/components/schemas/{name}"
STORABLE_IN_JSON = r"^[^\x00]*$"
"""The pattern `STORABLE` for the schema, without its part about surrogates: JSON in UTF-8 has none,
and few tools support such patterns."""
OPERATION_METHODS = ("get", "post", "put", "patch", "delete")
"""The keys of a path that are operations; a path may have other keys too."""
COMMON_PROBLEMS = {
    400: "The request is malformed or invalid; `errors` lists every wrong field.",
    401: "The API key is missing, unknown, revoked or expired.",
    403: "The scope of the key is too small, or the key was revoked during the request.",
    404: "The object does not exist.",
    408: "The request did not arrive in time.",
    409: "The request conflicts with the present state.",
    413: "The body is too large.",
    415: "The body has the wrong media type.",
    429: "The key sends too many requests.",
    503: "Try again later: the database is unavailable, or a worker has not stopped sending yet.",
}
"""Descriptions of the problems that many operations may respond with, by status."""
# parts of the schema, as OpenAPI writes them
RETRY_AFTER = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
}
HEADERS = {
    401: {"WWW-Authenticate": {"description": "Bearer.", "schema": {"type": "string"}}},
    429: RETRY_AFTER,
    503: RETRY_AFTER,
}
"""Headers of problems by status, besides Content-Type."""
KEY_SCHEME, MONITORING_SCHEME = "key", "monitoring"
KEY_SECURITY: list[SecurityRequirement] = [{KEY_SCHEME: []}]
"""The security of routes that need an API key."""
MONITORING_SECURITY: list[SecurityRequirement] = [{MONITORING_SCHEME: []}, {}]
"""The security of routes that need the monitoring token if one is set, and nothing otherwise."""
SECURITY_SCHEMES = {
    KEY_SCHEME: SecurityScheme(
        type="http",
        scheme="bearer",
        description="An API key. It needs the scope `read` to read, `write` to change anything, and"
        " `admin` for the audit log and webhooks.",
    ),
    MONITORING_SCHEME: SecurityScheme(
        type="http",
        scheme="bearer",
        description="The setting `MAILER_MONITORING_TOKEN`. Not needed if that is not set.",
    ),
}
# the description of the header in the schema
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A unique value for this request, so that the request can be repeated safely if"
    " its response is lost. For 24 hours a repeat with the same path, media type and body is not"
    " executed again, but gets the first response with `Idempotency-Replayed: true`. Another"
    " request with the same value gets 409. Quotes around the value are ignored. Responses 401,"
    " 403, 408, 429 and 5xx, and those sent before the body was read, are not stored.",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": '^(?!""$)[!-~]+$',
    },
    "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
}


API_VERSION = "1"
"""The version of the API, as in its URLs. The version of mailer is not shown publicly."""


def openapi_config() -> OpenAPIConfig:
    """Return Litestar's configuration of the schema and its pages."""
    return _Config(
        title="mailer",
        version=API_VERSION,
        description="Send mailings to clients by SMS, and follow the status of every message.",
        license=License(name="MIT", identifier="MIT"),
        components=Components(security_schemes=dict(SECURITY_SCHEMES)),
        use_handler_docstrings=True,
        render_plugins=docs_plugins(),
        openapi_router=docs_router(),
    )


class _Config(OpenAPIConfig):
    """Makes Litestar use `_OpenAPI`."""

    def to_openapi_schema(self) -> OpenAPI:
        document = super().to_openapi_schema()
        return _OpenAPI(**{field.name: getattr(document, field.name) for field in fields(document)})


class _OpenAPI(OpenAPI):
    """Completes Litestar's schema when it is converted to JSON."""

    def to_schema(self) -> dict[str, Any]:
        schema = super().to_schema()
        _complete_models(schema["components"]["schemas"])
        _define_problems(schema)
        _complete_operations(schema)
        _simplify_patterns(schema)
        return schema


def _complete_models(components: dict[str, Any]) -> None:
    """Add to the schemas of our structs, in `components`, what Litestar leaves out.

    That is their `EXAMPLE`; that they forbid unknown fields; and the rules for the entries of
    lists. For these, the properties of input are replaced by those that msgspec creates.
    """
    models = [model for model in _subclasses(msgspec.Struct) if model.__name__ in components]
    inputs = [model for model in models if issubclass(model, Input)]
    _refs, schemas = msgspec.json.schema_components(inputs, ref_template=SCHEMA_REFERENCE)
    for model in models:
        component = components[model.__name__]
        if model.__struct_config__.forbid_unknown_fields:
            component["additionalProperties"] = False
        if example := getattr(model, "EXAMPLE", None):
            component["examples"] = [example]
        if issubclass(model, Input):
            component["properties"] = schemas[model.__name__]["properties"]


def _subclasses(model: type[msgspec.Struct]) -> Iterable[type[msgspec.Struct]]:
    """Yield all direct and indirect subclasses."""
    for child in model.__subclasses__():
        yield child
        yield from _subclasses(child)


def _simplify_patterns(part: object) -> None:
    """Replace the pattern `STORABLE` everywhere in a part of the schema."""
    match part:
        case dict():
            if part.get("pattern") == STORABLE:
                part["pattern"] = STORABLE_IN_JSON
            for inner in part.values():
                _simplify_patterns(inner)
        case list():
            for inner in part:
                _simplify_patterns(inner)
        case _:
            pass


def _define_problems(schema: dict[str, Any]) -> None:
    """Add the model of a problem and the common problems to the components of the schema."""
    _refs, models = msgspec.json.schema_components([Problem], ref_template=SCHEMA_REFERENCE)
    components = schema.setdefault("components", {})
    components["schemas"] = models | components.get("schemas", {})
    components["responses"] = {
        _component_name(status): _problem_response(status, text)
        for status, text in COMMON_PROBLEMS.items()
    }


def _complete_operations(schema: dict[str, Any]) -> None:
    """Add to each operation its problems, and its header Idempotency-Key if it takes one.

    Also write its summary in words.
    """
    for path in schema["paths"].values():
        for method in OPERATION_METHODS:
            if operation := path.get(method):
                _declare_problems(method, operation)
                if method == "post" and _needs_key(operation):
                    operation.setdefault("parameters", []).append(IDEMPOTENCY_KEY)
                operation["summary"] = _split_words(operation["summary"])


def _declare_problems(method: str, operation: dict[str, Any]) -> None:
    """Set the responses of one operation with a status from 400 on."""
    responses = operation["responses"]
    common_statuses = {str(status) for status in COMMON_PROBLEMS}
    for status in responses.keys() - common_statuses:
        if status >= "400":  # declared by the handler: keep its description, set our media type
            responses[status]["content"] = _problem_content()
    for status in _problem_statuses(method, operation):
        responses[str(status)] = {"$ref": f"#/components/responses/{_component_name(status)}"}


def _problem_statuses(method: str, operation: dict[str, Any]) -> list[int]:
    """Return the statuses of the common problems that an operation can respond with."""
    # every operation: wrong parameters, an unavailable database
    statuses = {400, 503} | {
        int(status) for status in operation["responses"] if int(status) in COMMON_PROBLEMS
    }
    if any(parameter["in"] == "path" for parameter in operation.get("parameters", [])):
        statuses.add(404)
    if method in {"post", "put", "patch"}:  # even a route without a body reads it, to reject it
        statuses |= {408, 413, 415}
    if method != "get":
        statuses.add(409)
    if operation.get("security"):
        statuses.add(401)
    if _needs_key(operation):
        statuses |= {403, 429}
    return sorted(statuses)


def _needs_key(operation: dict[str, Any]) -> bool:
    """Return whether an operation needs an API key."""
    return operation.get("security") == KEY_SECURITY


def _problem_response(status: int, text: str) -> dict[str, Any]:
    """Return the schema of a response with a problem; `text` describes the problem."""
    example = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": text,
    }
    if status == HTTPStatus.BAD_REQUEST:
        example["errors"] = [{"field": "phone", "message": "must be 7 and ten digits"}]
    headers = {"headers": HEADERS[status]} if status in HEADERS else {}
    return {"description": text, "content": _problem_content(example)} | headers


def _problem_content(example: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the schema of the body of a response with a problem."""
    media: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {MEDIA_TYPE: media | ({"example": example} if example else {})}


def _split_words(summary: str) -> str:
    """Convert Litestar's summary, such as ListClients, to words: List clients."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", summary).capitalize()


def _component_name(status: int) -> str:
    """Return the name of the component that describes the problem with a status."""
    return f"Problem{status}"
