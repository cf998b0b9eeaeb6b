"""Everything of mailer that uses private, undocumented parts of Litestar.

They may change in any release (decision 14). `tests/integration/test_litestar_private_parts.py`
fails when one of them changes.
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
"""Paths that Litestar adds to the router of the documentation: its root, and every other path."""


class WholeBodyDTO(AbstractDTO[Model], Generic[Model]):
    """Base of a class that decodes the whole body of a request to the handler's parameter `data`.

    Litestar calls such a class a DTO (data transfer object). Undocumented are which methods of a
    DTO Litestar calls, the handler's `parsed_data_field`, and the `SchemaCreator`. The class could
    go if a route could set a decoder of its body.
    """

    @property
    def model(self) -> type[Model]:
        """The type in the annotation of `data`; raises `TypeError` if the handler has no `data`."""
        request: Request[Any, Any, Any] = Request(self.asgi_connection.scope)
        field = request.route_handler.parsed_data_field
        if field is None:
            raise TypeError("the handler takes no body")
        model: type[Model] = field.annotation
        return model

    @classmethod
    def create_for_field_definition(cls, *_: object, **__: object) -> None:
        """Do nothing. Litestar would create a class for the fields of the model here."""

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
    """Return a response like `response` that closes `stack` at its end.

    It does so too if the response fails or is cancelled. Undocumented is that Litestar only calls
    what `to_asgi_response` returns. The function could go if Litestar's background tasks also ran
    after an incomplete response.
    """

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        async with stack:
            await response(scope, receive, send)

    return respond  # type: ignore[return-value]  # no ASGIResponse, but Litestar only calls it


class PagesOnlyRouter(Router):
    """A router that serves only the pages of the documentation.

    Litestar adds handlers to it for `/` and for every unknown path, which would hide mailer's own
    pages. Undocumented is that it registers them like any other handler. The class could go if
    `OpenAPIConfig` had an option for these handlers.
    """

    def register(self, value: ControllerRouterHandler) -> list[Any]:
        """Register a handler for all its paths but the catch-all ones."""
        paths = getattr(value, "paths", None)
        if isinstance(paths, set):
            paths -= CATCH_ALL_PATHS
            if not paths:
                return []
        return super().register(value)
