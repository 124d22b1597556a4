"""The OpenAPI document: what FastAPI derives from the routes, without what they do not answer."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from service.api.access import scope_of
from service.api.oip_errors import INFERENCE_ERROR_SCHEMA, inference_response
from service.api.oip_schemas import REQUEST_SCHEMAS
from service.errors import PROBLEM_SCHEMA, MissingKey, WrongScope, problem_response

KEY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, as `equipoise keys create` prints it. The scope `manage` includes `score`.",
}
WWW_AUTHENTICATE = {"description": "`Bearer`.", "required": True, "schema": {"type": "string"}}
DERIVED = ("HTTPValidationError", "ValidationError")


class Documented(FastAPI):
    """FastAPI adds its own 422 to every route with a parameter; here only routes that can refuse one document it.

    A service with a file of keys says which of them an operation needs; one without promises no check.
    """

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            keyed = self.state.settings.keys_file is not None
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    _drop_derived(operation["responses"])
                    if keyed:
                        _add_key(operation, method.upper(), path)
            schemas = document["components"]["schemas"]
            for name in DERIVED:
                schemas.pop(name, None)
            if keyed:
                document["components"]["securitySchemes"] = {"key": KEY_SCHEME}
            schemas |= {"Problem": PROBLEM_SCHEMA, "InferenceError": INFERENCE_ERROR_SCHEMA, **REQUEST_SCHEMAS}
        assert self.openapi_schema is not None
        return self.openapi_schema


def operation_id(route: APIRoute) -> str:
    """The name of the function: short, and stable for the programs that generate clients from it."""
    return route.name


def _drop_derived(responses: dict[str, Any]) -> None:
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]


def _add_key(operation: dict[str, Any], method: str, path: str) -> None:
    """The scope that an operation needs, and how it answers without: every key may score."""
    scope = scope_of(method, path)
    if scope is None:
        return
    operation["security"] = [{"key": [scope]}]
    told = inference_response if path.startswith("/v2") else problem_response
    answers = told(MissingKey, WrongScope) if scope == "manage" else told(MissingKey)
    answers[401]["headers"] = {"WWW-Authenticate": WWW_AUTHENTICATE}
    for status, answer in answers.items():
        known = operation["responses"].setdefault(str(status), answer)
        if known is not answer:
            known["description"] += f"\n\n{answer['description']}"
