"""Everything of mailer that leans on private parts of Litestar.

`tests/integration/test_litestar_private_parts.py` fails when one of these parts changes.
"""

from collections.abc import Generator
from contextlib import AsyncExitStack
from typing import Any, Generic

from litestar import Request, Router
from litestar.dto import AbstractDTO
from litestar.dto.data_structures import DTOFieldDefinition
from litestar.openapi.spec import Reference, Schema
from litestar.response.base import ASGIResponse
from litestar.types import ControllerRouterHandler, Receive, Scope, Send
from litestar.typing import FieldDefinition

from mailer.validation import Model

CATCH_ALL_PATHS = frozenset({"/", "/{path:str}"})
"""Paths that Litestar adds to the router of the documentation."""


class WholeBodyDTO(AbstractDTO[Model], Generic[Model]):
    """Base of a DTO that decodes the whole body to the annotation of the handler's `data`.

    Undocumented: which methods of a DTO Litestar calls, the handler's `parsed_data_field`, and the
    `SchemaCreator`. A decoder of bodies that a route could set would replace the class.
    """

    @property
    def model(self) -> type[Model]:
        """The annotation of `data`; raises `TypeError` if the handler takes no body."""
        request: Request[Any, Any, Any] = Request(self.asgi_connection.scope)
        field = request.route_handler.parsed_data_field
        if field is None:
            raise TypeError("the handler takes no body")
        model: type[Model] = field.annotation
        return model

    @classmethod
    def create_for_field_definition(cls, *_: object, **__: object) -> None:
        """Do nothing: the handler's annotation is the model."""

    @classmethod
    def create_openapi_schema(
        cls,
        field_definition: FieldDefinition,
        handler_id: str,
        schema_creator: Any,  # noqa: ANN401  # its class is in a private module
    ) -> Reference | Schema:
        """Return the schema of the model, the same for every handler."""
        del handler_id
        schema: Reference | Schema = schema_creator.for_field_definition(field_definition)
        return schema

    @classmethod
    def generate_field_definitions(
        cls, model_type: type[Any]
    ) -> Generator[DTOFieldDefinition, None, None]:
        """Raise, because Litestar never needs it: the model is used as it is."""
        raise NotImplementedError(model_type)

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        """Raise, because Litestar never needs it: the model is used as it is."""
        raise NotImplementedError(field_definition)


def close_after(response: ASGIResponse, stack: AsyncExitStack) -> ASGIResponse:
    """Return `response`, after which `stack` is closed, also when it fails or is cancelled.

    Undocumented: Litestar only calls what `to_asgi_response` returns. A background task that runs
    after an incomplete response, too, would replace the function.
    """

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        async with stack:
            await response(scope, receive, send)

    return respond  # type: ignore[return-value]  # only called


class PagesOnlyRouter(Router):
    """A router for the documentation: Litestar would also answer `/` and every unknown path.

    Undocumented: Litestar registers its own handlers of these paths like any other. An option of
    `OpenAPIConfig` for the root page and unknown paths would replace the class.
    """

    def register(self, value: ControllerRouterHandler) -> list[Any]:
        """Register a handler for all its paths but the catch-all ones."""
        paths = getattr(value, "paths", None)
        if isinstance(paths, set):
            paths -= CATCH_ALL_PATHS
            if not paths:
                return []
        return super().register(value)
