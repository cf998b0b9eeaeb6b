"""What this process counts about itself, as Prometheus reads it."""

from litestar import Response, get
from prometheus_client import generate_latest

from mailer.metrics import REGISTRY

MEDIA_TYPE = "text/plain; version=0.0.4"


@get("/metrics", include_in_schema=False)
async def show_metrics() -> Response[bytes]:
    """Answer in the text format, which every Prometheus reads; it needs no database."""
    return Response(generate_latest(REGISTRY), media_type=MEDIA_TYPE)
