"""A misspelt option must not be passed over: `?activte=false` would put a model live."""

from collections.abc import Sequence

from fastapi import Request
from fastapi.dependencies.models import Dependant
from pydantic import BaseModel

from service.errors import InvalidRequest


def refuse_unknown_options(request: Request) -> None:
    """Raises: InvalidRequest for an option in the query that the route does not have, or that stands there twice."""
    if not request.query_params:
        return
    check_known([name for name, _ in request.query_params.multi_items()], _options_of(request.scope["route"].dependant))


def check_known(given: Sequence[str], known: Sequence[str]) -> None:
    """Raises: InvalidRequest for a name that is not known, or that stands there twice."""
    for name in given:
        if name not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise InvalidRequest(f"this address has no option {name!r}; {has}.")
        if given.count(name) > 1:
            raise InvalidRequest(f"the option {name!r} stands more than once in the query. Give it once.")


def _options_of(dependant: Dependant) -> list[str]:
    found = [name for part in dependant.dependencies for name in _options_of(part)]
    for field in dependant.query_params:
        kind = field.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += kind.model_fields
        else:
            found.append(field.alias)
    return found
