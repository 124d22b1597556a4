"""Which key an address needs. What is not named here needs one with the scope `manage`."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address

from service.keys import KeyScope

OPEN = frozenset({"/v2/health/live", "/v2/health/ready", "/docs", "/redoc", "/openapi.json"})


def scope_of(method: str, path: str) -> KeyScope | None:
    """The scope of the key that a request needs; None where it needs no key.

    Costs under a microsecond. Args: path, decoded and without the query, as routes are found by it (ASGI's `path`).
    """
    match method, path.split("/"):
        case "POST", ["", "v1", "models", model, "scores"] if model:
            return "score"
        case "POST", ["", "v2", "models", model, "infer"] if model:
            return "score"
        case "POST", ["", "v2", "models", model, "versions", version, "infer"] if model and version:
            return "score"
        case "GET", ["", "metrics"] | ["", "v2"]:
            return "score"
        case "GET", ["", "v2", "models", model] | ["", "v2", "models", model, "ready"] if model:
            return "score"
        case "GET", ["", "v2", "models", model, "versions", version, *ready] if model and version:
            return "score" if ready in ([], ["ready"]) else "manage"
        case "GET" | "HEAD", _ if path in OPEN:
            return None
    return "manage"


def foreign_host(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request names a host that is neither an address nor localhost.

    A page of somebody else may let its own name lead to 127.0.0.1 (DNS rebinding), and is then of the same site as the
    service for the browser. A request without the header is of no browser. Args: headers, with names in lower case.
    """
    return any(_is_name(value) for name, value in headers if name == b"host")


@lru_cache(maxsize=64)
def _is_name(host: bytes) -> bool:
    text = host.decode("latin-1").lower()
    name = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    try:
        ip_address(name)
    except ValueError:
        return name != "localhost"
    return False
