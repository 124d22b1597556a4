"""What pydantic finds wrong, as one error."""

from collections.abc import Mapping, Sequence
from typing import Any

from service.errors import InvalidRequest


def invalid(errors: Sequence[Mapping[str, Any]], *, within: str = "") -> InvalidRequest:
    """Args: errors, as pydantic lists them; within, the part of the request where they are, such as "query."."""
    found = [
        {"where": within + ".".join(str(part) for part in each["loc"]), "message": each["msg"], "got": _came(each)}
        for each in errors
    ]
    detail = "; ".join(f"{each['where']}: {each['message']}, got {each['got']}" for each in found)
    untyped = any(isinstance(each.get("input"), bytes) for each in errors)  # a body that was not read as JSON
    way_out = "Say what it is: Content-Type: application/json." if untyped else "The routes are described at /docs."
    return InvalidRequest(f"{detail}. {way_out}", errors=found)


def _came(error: Mapping[str, Any]) -> str:
    if error["type"] == "missing":  # its input is what surrounds the field
        return "nothing"
    text = repr(error.get("input"))
    return text if len(text) <= 80 else text[:77] + "..."
