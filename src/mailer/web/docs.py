"""The pages on the API at /docs and /redoc, and its schema at /openapi.json; no outside host."""

from html import escape
from string import Template
from typing import Any

from litestar import MediaType, Request, Router
from litestar.datastructures import ResponseHeader
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.types import ControllerRouterHandler

from mailer.web.assets import asset_url

# Styles may stand in the page, since both viewers write some; scripts may not. ReDoc searches in
# a worker that it makes itself.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; connect-src 'self'; worker-src blob:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="$icon">
$assets
</head>
<body style="margin: 0">
<div id="$place" data-schema="$schema"></div>
</body>
</html>
""")


class ViewerPlugin(OpenAPIRenderPlugin):
    """A page that shows the schema with scripts and styles of our own `static/` alone."""

    def __init__(self, path: str, *, place: str, styles: list[str], scripts: list[str]) -> None:
        super().__init__(path=path)
        self.place = place
        self.assets = [
            *(f'<link rel="stylesheet" href="{asset_url(name)}">' for name in styles),
            *(f'<script src="{asset_url(name)}" defer></script>' for name in scripts),
        ]

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return the page; the viewer fetches the schema itself."""
        return PAGE.substitute(
            title=escape(openapi_schema["info"]["title"]),
            icon=asset_url("favicon.svg"),
            assets="\n".join(self.assets),
            place=self.place,
            schema=self.get_openapi_json_route(request),
        ).encode()


class DocsRouter(Router):
    """Holds the pages alone: Litestar would also answer `/` and every unknown path in its place."""

    def register(self, value: ControllerRouterHandler) -> list[Any]:
        """Register a page, and leave out what Litestar puts at `/` and `/{path}`."""
        if getattr(value, "paths", set()) & {"/", "/{path:str}"}:
            return []
        return super().register(value)


def docs_router() -> DocsRouter:
    """Return the router for the pages, to be given to `OpenAPIConfig`."""
    return DocsRouter(
        path="/",
        route_handlers=[],
        include_in_schema=False,
        opt={"needs": "nothing"},
        response_headers=[ResponseHeader(name="Content-Security-Policy", value=POLICY)],
    )


def docs_plugins() -> list[OpenAPIRenderPlugin]:
    """Return the three pages: the schema as JSON, Swagger UI, ReDoc."""
    return [
        JsonRenderPlugin(path="/openapi.json", media_type=MediaType.JSON),
        ViewerPlugin(
            "/docs",
            place="swagger-ui",
            styles=["swagger-ui/swagger-ui.css"],
            scripts=["swagger-ui/swagger-ui-bundle.js", "docs.js"],
        ),
        ViewerPlugin(
            "/redoc",
            place="redoc",
            styles=[],
            scripts=["redoc/redoc.standalone.js", "redoc.js"],
        ),
    ]
