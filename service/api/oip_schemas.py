"""Requests and answers of the Open Inference Protocol, as they are read and as the OpenAPI page describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.json_schema import models_json_schema

from service.api.schemas import Answer
from service.errors import InvalidRequest
from service.runtime.arrays import read_json

MOST_MEMBERS = 16


class Part(BaseModel):
    """A JSON object of a request; a misspelt member is an error and not ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_members(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MOST_MEMBERS:  # or millions of unknown ones are millions of errors
            raise ValueError(f"has {len(value)} members, more than the protocol knows")
        return value

    @classmethod
    def read(cls, data: bytes) -> Self:
        """The object that the JSON is. Raises: InvalidRequest."""
        try:
            return cls.model_validate(read_json(data))
        except ValidationError as error:
            found = [
                f"{'.'.join(map(str, each['loc'])) or 'the request'}: {each['msg']}, got {_came(each['input'])}"
                for each in error.errors(include_url=False)
            ]
            raise InvalidRequest(
                f"the request is not as the Open Inference Protocol has it: {'; '.join(found)}. See /docs."
            ) from error


def _came(value: Any) -> str:
    if isinstance(value, list | dict):  # which may be long
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return repr(value)[:80]


class TensorParameters(Part):
    binary_data_size: Annotated[
        int | None, Field(ge=0, description="Bytes of this tensor after the JSON; without it, `data` holds it.")
    ] = None


class InputTensor(Part):
    name: Annotated[str, Field(description="`images`, `image` or `logits`.")]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=4)]
    datatype: Literal["UINT8", "BYTES", "FP32", "FP64"]
    parameters: TensorParameters | None = None
    data: Annotated[Any, Field(description="A flat list, or nested as the shape; files (BYTES) in base64.")] = None


class OutputParameters(Part):
    binary_data: Annotated[bool | None, Field(description="Whether it follows the JSON as bytes.")] = None
    classification: Annotated[
        int | None, Field(ge=1, description='The k best classes instead, as BYTES "value:index:name".')
    ] = None


class AskedOutput(Part):
    name: Literal["scores", "logits", "debiased"]
    parameters: OutputParameters | None = None


class RequestParameters(Part):
    """As in a scores request of /v1, and what the protocol's extensions know."""

    prior: Annotated[str | None, Field(description="A name, or numbers as JSON text.")] = None
    kappa: Annotated[float | None, Field(description="Between uniform (0) and the training law (1).")] = None
    version: Annotated[str | None, Field(description="A number or an alias; or in the address.")] = None
    calibration: Annotated[str | None, Field(description="Another than the live one, with its version.")] = None
    binary_data_output: Annotated[bool | None, Field(description="Whether outputs are bytes by default.")] = None
    priority: Annotated[int | None, Field(description="Ignored: requests do not wait for each other.")] = None
    timeout: Annotated[
        int | None, Field(ge=0, description="Microseconds after which the answer is of no use; 0 for no own bound.")
    ] = None


class InferRequest(Part):
    id: str | None = None
    parameters: RequestParameters | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1, description="Exactly one of the inputs.")]
    outputs: Annotated[list[AskedOutput] | None, Field(max_length=3, description="Without it, all outputs.")] = None


class IndexRequest(Part):
    ready: Annotated[bool | None, Field(description="Whether to leave out models that are not ready.")] = None


class LoadParameters(Part):
    """None: a model is loaded as it is registered."""


class LoadRequest(Part):
    parameters: LoadParameters | None = None


class UnloadParameters(Part):
    unload_dependents: Annotated[bool | None, Field(description="Ignored: no model depends on another.")] = None


class UnloadRequest(Part):
    parameters: UnloadParameters | None = None


_, _SCHEMAS = models_json_schema(
    [(each, "validation") for each in (InferRequest, IndexRequest, LoadRequest, UnloadRequest)],
    ref_template="#/components/schemas/{model}",
)
REQUEST_SCHEMAS: dict[str, Any] = _SCHEMAS["$defs"]


class ServerAnswer(Answer):
    name: Literal["equipoise"]
    version: str
    extensions: list[str]


class TensorAnswer(Answer):
    name: Annotated[str, Field(examples=["images"])]
    datatype: Annotated[str, Field(examples=["UINT8"])]
    shape: Annotated[list[int], Field(description="-1 is any number.", examples=[[-1, 32, 32, 3]])]


class MetadataAnswer(Answer):
    """What a model takes and gives; a request sends one of the inputs."""

    name: Annotated[str, Field(examples=["pets"])]
    versions: list[str]
    platform: Annotated[str, Field(description="`onnxruntime_onnx`, or `equipoise` for a model without a network.")]
    inputs: list[TensorAnswer]
    outputs: list[TensorAnswer]


class ModelReadyAnswer(Answer):
    name: Annotated[str, Field(examples=["pets"])]
    ready: Literal[True]


class OutputAnswer(TensorAnswer):
    parameters: dict[str, Any] | None = None
    data: Annotated[list[Any] | None, Field(description="Row by row; None where the bytes follow the JSON.")] = None


class UsedParameters(Answer):
    """What made the scores."""

    calibration: Annotated[str, Field(examples=["c1"])]
    method: Annotated[str, Field(examples=["marc"])]
    prior: Annotated[str, Field(examples=["uniform"])]
    edition: int | None = None
    kappa: float | None = None


class InferAnswer(Answer):
    model_name: Annotated[str, Field(examples=["pets"])]
    model_version: Annotated[str, Field(examples=["1"])]
    id: str | None = None
    parameters: UsedParameters
    outputs: list[OutputAnswer]


class IndexEntry(Answer):
    """A model of this process, in its live version."""

    name: Annotated[str, Field(examples=["pets"])]
    version: Annotated[str, Field(description="Empty where the model cannot be loaded.", examples=["1"])]
    state: Literal["READY", "UNAVAILABLE"]
    reason: Annotated[str, Field(description="Why it is unavailable; empty when it is ready.")]
