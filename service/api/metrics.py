"""What Prometheus scrapes."""

from fastapi import APIRouter, Request, Response

from service.metrics import CONTENT_TYPE, Metrics

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    name="read_metrics",
    summary="Metrics",
    response_class=Response,
    responses={
        200: {
            "description": "All series.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": "equipoise_queue_requests 0.0\n"}},
        }
    },
)
def read_metrics(request: Request) -> Response:
    """Counts and times since the process began, in the text format of Prometheus; docs/operations.md explains each."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})
