"""The OpenAPI document: what FastAPI derives from the routes, without what they do not answer."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from service.api.oip_errors import INFERENCE_ERROR_SCHEMA
from service.api.oip_schemas import REQUEST_SCHEMAS
from service.errors import PROBLEM_SCHEMA

DERIVED = ("HTTPValidationError", "ValidationError")


class Documented(FastAPI):
    """FastAPI adds its own 422 to every route with a parameter; here only routes that can refuse one document it."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            for operations in document["paths"].values():
                for operation in operations.values():
                    _drop_derived(operation["responses"])
            schemas = document["components"]["schemas"]
            for name in DERIVED:
                schemas.pop(name, None)
            schemas |= {"Problem": PROBLEM_SCHEMA, "InferenceError": INFERENCE_ERROR_SCHEMA, **REQUEST_SCHEMAS}
        assert self.openapi_schema is not None
        return self.openapi_schema


def operation_id(route: APIRoute) -> str:
    """The name of the function: short, and stable for the programs that generate clients from it."""
    return route.name


def _drop_derived(responses: dict[str, Any]) -> None:
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]
