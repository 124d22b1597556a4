"""Errors of the Open Inference Protocol for the OpenAPI page: `{"error": "..."}` below /v2."""

from collections.abc import Mapping
from typing import Any

from models.calibration.errors import CalibrationError
from service.errors import RETRIED, RETRY_AFTER, inference_status

INFERENCE_ERROR_SCHEMA: Mapping[str, Any] = {
    "title": "InferenceError",
    "description": "As the Open Inference Protocol has it: the rule, what came, and the way out, for people.",
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "examples": ["there is no model 'pest'; the models are: pets."]}},
}
CONTENT = {"application/json": {"schema": {"$ref": "#/components/schemas/InferenceError"}}}


def inference_response(*errors: type[CalibrationError]) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI page says of the errors that a route below /v2 answers with."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for error in dict.fromkeys(errors):
        status = inference_status(error)
        entry = by_status.setdefault(status, {"description": "", "content": CONTENT})
        if status in RETRIED:
            entry["headers"] = {"Retry-After": RETRY_AFTER}
        entry["description"] = f"{entry['description']}\n\n{(error.__doc__ or '').splitlines()[0]}".strip()
    return by_status
