"""What the OpenAPI schema says beyond what Litestar sees: refused fields and problem answers."""

import re
from collections.abc import Iterable
from dataclasses import fields
from http import HTTPStatus
from typing import Any, get_origin

import msgspec

# Litestar has no public base for this: its own plugin for structs, asked before Litestar's.
from litestar._openapi.schema_generation import SchemaCreator
from litestar._openapi.schema_generation.plugins.struct import StructSchemaPlugin
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import (
    Components,
    License,
    OpenAPI,
    Schema,
    SecurityRequirement,
    SecurityScheme,
)
from litestar.typing import FieldDefinition

from mailer.validation import STORABLE, Input
from mailer.web.docs import docs_plugins, docs_router
from mailer.web.problems import MEDIA_TYPE, Problem

REFERENCE = "#/components/schemas/{name}"
STORABLE_IN_JSON = r"^[^\x00]*$"
"""STORABLE, as far as JSON in UTF-8 can break it: it has no surrogates, and few readers of schemas
know patterns of them."""
METHODS = ("get", "post", "put", "patch", "delete")
PROBLEMS = {
    400: "Malformed, or against a rule: `errors` names every wrong field.",
    401: "No key, or one that is unknown, revoked or expired.",
    403: "The key's scope is too small for it, or the key was revoked meanwhile.",
    404: "No such thing.",
    408: "The request did not arrive in time.",
    409: "It clashes with the present state.",
    413: "The body is too large.",
    415: "The body is of another type than the call takes.",
    429: "The key asks too often.",
    503: "Not now, ask again: the database is away, or a process has yet to stop sending.",
}
RETRY_AFTER = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
}
HEADERS = {
    401: {"WWW-Authenticate": {"description": "Bearer.", "schema": {"type": "string"}}},
    429: RETRY_AFTER,
    503: RETRY_AFTER,
}
"""Of problems, beside the one that says their type."""
KEY, MONITORING = "key", "monitoring"
BY_KEY: list[SecurityRequirement] = [{KEY: []}]
"""Of what a key opens."""
IF_SET: list[SecurityRequirement] = [{MONITORING: []}, {}]
"""Of what the monitoring token opens where one is set, and anybody else."""
SCHEMES = {
    KEY: SecurityScheme(
        type="http",
        scheme="bearer",
        description="An API key. To read it needs the scope `read`, to change anything `write`,"
        " for the audit log `admin`.",
    ),
    MONITORING: SecurityScheme(
        type="http",
        scheme="bearer",
        description="The setting `MAILER_MONITORING_TOKEN`; where it is not set anybody may look.",
    ),
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Names the request, so that it can be repeated when its answer is lost: with the"
    " same path, type and body it is done once and gets the first answer again for 24 hours, then"
    " with `Idempotency-Replayed: true`; another request is 409. Quotes around it do not count."
    " Not kept are 401, 403, 408, 429, 5xx and what is refused before the body is read.",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": '^(?!""$)[!-~]+$',
    },
    "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
}


API_VERSION = "1"
"""The API's, as its addresses have it: which mailer answers is nobody's business."""


def openapi_config() -> OpenAPIConfig:
    """Return what Litestar needs to describe the API and to show its pages."""
    config = _Config(
        title="mailer",
        version=API_VERSION,
        description="Mailings to clients by an SMS gateway, and what became of every message.",
        license=License(name="MIT", identifier="MIT"),
        components=Components(security_schemes=dict(SCHEMES)),
        use_handler_docstrings=True,
        render_plugins=docs_plugins(),
        openapi_router=docs_router(),
    )
    config.default_plugin = None  # `/` is the admin pages'
    return config


class StructPlugin(StructSchemaPlugin):
    """Says of a struct that it forbids unknown fields, and shows its `EXAMPLE`."""

    def to_openapi_schema(
        self, field_definition: FieldDefinition, schema_creator: SchemaCreator
    ) -> Schema:
        """Return Litestar's schema of the struct with what Litestar leaves out."""
        schema = super().to_openapi_schema(field_definition, schema_creator)
        struct = get_origin(field_definition.annotation) or field_definition.annotation
        if struct.__struct_config__.forbid_unknown_fields:
            schema.additional_properties = False
        if example := getattr(struct, "EXAMPLE", None):
            schema.examples = [example]
        return schema


class _Config(OpenAPIConfig):
    def to_openapi_schema(self) -> OpenAPI:
        plain = super().to_openapi_schema()
        return _OpenAPI(**{field.name: getattr(plain, field.name) for field in fields(plain)})


class _OpenAPI(OpenAPI):
    def to_schema(self) -> dict[str, Any]:
        schema = super().to_schema()
        _declare_inputs(schema["components"]["schemas"])
        _declare_problems(schema)
        _simplify_patterns(schema)
        return schema


def _declare_inputs(components: dict[str, Any]) -> None:
    """Let the models of what is given say their rules in full: Litestar drops those in lists."""
    models = [model for model in _below(Input) if model.__name__ in components]
    _refs, schemas = msgspec.json.schema_components(models, ref_template=REFERENCE)
    for model in models:
        components[model.__name__]["properties"] = schemas[model.__name__]["properties"]


def _below(model: type[Input]) -> Iterable[type[Input]]:
    for child in model.__subclasses__():
        yield child
        yield from _below(child)


def _simplify_patterns(part: object) -> None:
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


def _declare_problems(schema: dict[str, Any]) -> None:
    """Give each operation of `schema` the problems that it may answer with."""
    _refs, models = msgspec.json.schema_components([Problem], ref_template=REFERENCE)
    components = schema.setdefault("components", {})
    components["schemas"] = models | components.get("schemas", {})
    components["responses"] = {
        _name(status): _answer(status, text) for status, text in PROBLEMS.items()
    }
    for item in schema["paths"].values():
        for method in METHODS:
            if operation := item.get(method):
                _declare_problems_of(method, operation)
                if method == "post" and _is_by_key(operation):
                    operation.setdefault("parameters", []).append(IDEMPOTENCY_KEY)
                operation["summary"] = _spaced(operation["summary"])


def _declare_problems_of(method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    for status in responses.keys() - {str(known) for known in PROBLEMS}:
        if status >= "400":  # a handler's own: its words, our shape
            responses[status]["content"] = _content()
    for status in _statuses(method, operation):
        responses[str(status)] = {"$ref": f"#/components/responses/{_name(status)}"}


def _statuses(method: str, operation: dict[str, Any]) -> list[int]:
    """Return the problems that such a call can meet."""
    statuses = {400, 503} | {
        int(status) for status in operation["responses"] if int(status) in PROBLEMS
    }
    if any(parameter["in"] == "path" for parameter in operation.get("parameters", [])):
        statuses.add(404)
    if method in {"post", "put", "patch"}:  # one without a body reads it to refuse it
        statuses |= {408, 413, 415}
    if method != "get":
        statuses.add(409)
    if operation.get("security"):
        statuses.add(401)
    if _is_by_key(operation):
        statuses |= {403, 429}
    return sorted(statuses)


def _is_by_key(operation: dict[str, Any]) -> bool:
    return operation.get("security") == BY_KEY


def _answer(status: int, text: str) -> dict[str, Any]:
    example = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": text,
    }
    if status == HTTPStatus.BAD_REQUEST:
        example["errors"] = [{"field": "phone", "message": "must be 7 and ten digits"}]
    headers = {"headers": HEADERS[status]} if status in HEADERS else {}
    return {"description": text, "content": _content(example)} | headers


def _content(example: dict[str, Any] | None = None) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {MEDIA_TYPE: media | ({"example": example} if example else {})}


def _spaced(summary: str) -> str:
    """Return the name of a handler, which Litestar writes as ListClients, as people do."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", summary).capitalize()


def _name(status: int) -> str:
    return f"Problem{status}"
