"""Documentation of the API: /docs, /redoc and /openapi.json, without any external host."""

from html import escape
from string import Template
from typing import Any

from litestar import MediaType, Request
from litestar.datastructures import ResponseHeader
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin

from mailer.web.assets import asset_url
from mailer.web.litestar_internals import PagesOnlyRouter

# The Content-Security-Policy of these pages. Inline styles are allowed because both viewers write
# some; inline scripts are not. ReDoc runs its search in a web worker that it creates from a blob.
DOCS_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; connect-src 'self'; worker-src blob:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The page of a viewer; `ViewerPlugin.render` fills in the names that start with $.
VIEWER_PAGE = Template("""\
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
<div id="$element_id" data-schema="$schema"></div>
</body>
</html>
""")


class ViewerPlugin(OpenAPIRenderPlugin):
    """A page in which a viewer shows the OpenAPI schema.

    The viewer is a script in `static/`; it fills the element with the id `element_id`.
    """

    def __init__(
        self, path: str, *, element_id: str, styles: list[str], scripts: list[str]
    ) -> None:
        """Create a page at `path`; `styles` and `scripts` are names of files in `static/`."""
        super().__init__(path=path)
        self.element_id = element_id
        self.assets = [
            *(f'<link rel="stylesheet" href="{asset_url(name)}">' for name in styles),
            *(f'<script src="{asset_url(name)}" defer></script>' for name in scripts),
        ]

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return the page in HTML. It contains the URL of the schema, which the viewer fetches."""
        return VIEWER_PAGE.substitute(
            title=escape(openapi_schema["info"]["title"]),
            icon=asset_url("favicon.svg"),
            assets="\n".join(self.assets),
            element_id=self.element_id,
            schema=self.get_openapi_json_route(request),
        ).encode()


def docs_router() -> PagesOnlyRouter:
    """Return the router for these pages, for Litestar's `OpenAPIConfig`."""
    return PagesOnlyRouter(
        path="/",
        route_handlers=[],
        include_in_schema=False,
        opt={"required_scope": "nothing"},
        response_headers=[ResponseHeader(name="Content-Security-Policy", value=DOCS_CSP)],
    )


def docs_plugins() -> list[OpenAPIRenderPlugin]:
    """Return the three pages: the schema as JSON, Swagger UI, ReDoc."""
    return [
        JsonRenderPlugin(path="/openapi.json", media_type=MediaType.JSON),
        ViewerPlugin(
            "/docs",
            element_id="swagger-ui",
            styles=["swagger-ui/swagger-ui.css"],
            scripts=["swagger-ui/swagger-ui-bundle.js", "docs.js"],
        ),
        ViewerPlugin(
            "/redoc",
            element_id="redoc",
            styles=[],
            scripts=["redoc/redoc.standalone.js", "redoc.js"],
        ),
    ]
