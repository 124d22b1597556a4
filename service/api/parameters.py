"""The names in addresses: how they look and what they stand for. One that cannot exist is answered as one unknown."""

import re
from typing import Annotated

from fastapi import Path

from models.calibration.manifest import MODEL_NAME
from service.errors import UnknownCalibration

_NAME = f"^{MODEL_NAME.pattern}$"

ModelName = Annotated[
    str, Path(description="Name of the model.", examples=["pets"], json_schema_extra={"pattern": _NAME})
]
VersionNumber = Annotated[
    str,
    Path(description="Number of the version.", examples=["2"], json_schema_extra={"pattern": "^[1-9][0-9]{0,8}$"}),
]
AliasName = Annotated[
    str,
    Path(
        description="Name of a version; not a number, since versions are.",
        examples=["candidate"],
        json_schema_extra={"pattern": _NAME},
    ),
]
CalibrationName = Annotated[
    str,
    Path(description="Id of the calibration.", examples=["c2"], json_schema_extra={"pattern": "^c[1-9][0-9]{0,8}$"}),
]
OtherCalibrationName = Annotated[
    str,
    Path(
        description="Id of the calibration to compare with.",
        examples=["c1"],
        json_schema_extra={"pattern": "^c[1-9][0-9]{0,8}$"},
    ),
]
RevisionNumber = Annotated[
    str,
    Path(description="Number of the change.", examples=["2"], json_schema_extra={"pattern": "^[1-9][0-9]{0,8}$"}),
]
PriorName = Annotated[
    str, Path(description="Name of the prior.", examples=["summer"], json_schema_extra={"pattern": _NAME})
]
JobName = Annotated[
    str, Path(description="Id of the job.", examples=["j1"], json_schema_extra={"pattern": "^j[1-9][0-9]{0,8}$"})
]


def number_of(model: str, calibration: str) -> int:
    """Raises: UnknownCalibration for what is no name of a calibration."""
    if not re.fullmatch(r"c[1-9][0-9]{0,8}", calibration):
        raise UnknownCalibration(
            f"calibrations are called c1, c2 and so on; got {calibration[:80]!r}. GET "
            f"/v1/models/{model}/calibrations lists them."
        )
    return int(calibration[1:])
