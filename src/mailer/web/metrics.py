"""What this process counts about itself, as Prometheus reads it."""

from litestar import Response, get
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from mailer.metrics import REGISTRY


@get("/metrics", include_in_schema=False)
async def show_metrics() -> Response[bytes]:
    """Answer in the text format, which every Prometheus reads; it needs no database."""
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_PLAIN_0_0_4)
