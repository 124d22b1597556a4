"""An infer request of the Open Inference Protocol: its header and tensors, and its answer."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import orjson

from models.calibration.apply import LogitArray
from service.api.call import LIGHT_BYTES, LIGHT_NUMBERS, Answer, Call
from service.api.oip_schemas import InferRequest, InputTensor, RequestParameters
from service.errors import InvalidRequest
from service.runtime import inference, scoring, tensors
from service.runtime.inference import DEBIASED, LOGITS, RAW, SCORES, Asked
from service.runtime.laws import Law
from service.runtime.live import LiveModel
from service.runtime.tensors import Tensor

HEADER_LENGTH = "Inference-Header-Content-Length"
OCTETS = b"application/octet-stream"
LONGEST_KNOWN = 2 << 10  # bytes of a header that is kept as it was read
MICROSECONDS = 1e-6  # the protocol's unit of a timeout

Outputs = tuple[list[dict[str, Any]], bytes]  # as the JSON says them, and the binary data after it


async def infer(call: Call, model: str, version: str | None = None) -> Answer:
    """The outputs that a request asks for. Raises: whatever is wrong with it."""
    header_length, encoding = _header_length(call), call.text(b"content-encoding").lower() or "identity"
    body = await call.body()
    if encoding != "identity":
        most = call.server.limits.most_bytes
        body = await call.do(partial(tensors.inflated, body, encoding, most), light=False)
    header, rest = tensors.split(body, header_length)
    read = _known if rest is not None and len(header) <= LONGEST_KNOWN else InferRequest.read
    request: InferRequest = await call.do(partial(read, header), light=len(header) <= LIGHT_BYTES)
    asked = request.parameters or RequestParameters()
    outputs = _asked(request)
    if version is not None and asked.version is not None:
        raise InvalidRequest("version stands in the address and in the parameters. Give it once.")
    if asked.timeout:  # 0 is the server's own
        call.wants_within(asked.timeout * MICROSECONDS)
    live = await call.live(model, version=version or asked.version, calibration=asked.calibration)
    law = await call.law(live, asked.prior, asked.kappa)
    tensor = _tensor(request.inputs[0], rest)
    inference.check(live, tensor)
    light = isinstance(tensor.data, bytes) or len(header) <= LIGHT_BYTES
    if tensor.name == LOGITS:
        light = len(body) <= LIGHT_BYTES
        work = partial(_outputs_of_logits, live, law, tensor, outputs)
    else:
        most = call.server.settings.max_pixels
        pixels = await call.do(partial(inference.pixels_of, tensor, max_pixels=most), light=light)
        only_scores = all(each.name == SCORES for each in outputs)
        found = await call.run(live, pixels, law.on_float32 if only_scores else None)
        light = found.size <= LIGHT_NUMBERS
        work = partial(_outputs_of_scores if only_scores else _outputs_of, live, law, found, outputs)
    described, binary = await call.do(work, light=light)
    return _answer(live, law, described, binary, request.id)


@lru_cache(maxsize=256)
def _known(header: bytes) -> InferRequest:
    """The JSON before binary data, which clients send again and again. Raises: InvalidRequest."""
    return InferRequest.read(header)


def _header_length(call: Call) -> int | None:
    text = call.text(HEADER_LENGTH.lower().encode())
    if not text:
        return None
    if not (text.isdecimal() and text.isascii() and len(text) < 19):
        raise InvalidRequest(f"{HEADER_LENGTH} is a number of bytes; got {text[:80]!r}.")
    return int(text)


def _outputs_of_scores(live: LiveModel, law: Law, scores: LogitArray, asked: list[Asked]) -> Outputs:
    return inference.encoded(live.class_names, {SCORES: scores}, asked)


def _outputs_of(live: LiveModel, law: Law, logits: LogitArray, asked: list[Asked]) -> Outputs:
    return inference.encoded(live.class_names, inference.values_of(scoring.scored(live, logits, law)), asked)


def _outputs_of_logits(live: LiveModel, law: Law, tensor: Tensor, asked: list[Asked]) -> Outputs:
    logits = inference.logits_of(tensor)
    scoring.check_amount(len(logits), live, each=len(asked))
    return _outputs_of(live, law, logits, asked)


def _tensor(sent: InputTensor, rest: bytes | None) -> Tensor:
    """The one input, with its data from the place where the request says that it is."""
    size = None if sent.parameters is None else sent.parameters.binary_data_size
    if size is not None and sent.data is not None:
        raise InvalidRequest(f"input {sent.name[:80]!r} has its data in the JSON or after it; got both.")
    if size is None and rest:
        raise InvalidRequest(f"{len(rest)} bytes follow the JSON; set binary_data_size in the input's parameters.")
    if size is not None and rest is None:
        raise InvalidRequest(f"binary_data_size needs the header {HEADER_LENGTH}: the bytes begin after the JSON.")
    if size is not None and rest is not None and size != len(rest):
        raise InvalidRequest(f"binary_data_size is the number of bytes after the JSON, {len(rest)}; got {size}.")
    data = sent.data if size is None else rest
    return Tensor(name=sent.name, datatype=sent.datatype, shape=tuple(sent.shape), data=data)


def _answer(
    live: LiveModel, law: Law, described: list[dict[str, Any]], binary: bytes, request_id: str | None
) -> Answer:
    named = dict(law.named)
    used = {"calibration": live.calibration, "method": law.calibration.method, "prior": named.pop("name")}
    content: dict[str, Any] = {
        "model_name": live.name,
        "model_version": live.version,
        "parameters": used | named,
        "outputs": described,
    }
    if request_id is not None:
        content["id"] = request_id
    header = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any("parameters" in each for each in described):
        return Answer(header)
    return Answer(header + binary, OCTETS, [(HEADER_LENGTH.lower().encode(), str(len(header)).encode())])


def _asked(request: InferRequest) -> list[Asked]:
    """The outputs of the answer, in the order of the request. Raises: InvalidRequest for one asked for twice."""
    by_default = bool(request.parameters and request.parameters.binary_data_output)
    if not request.outputs:
        return [Asked(name=name, binary=by_default) for name in (SCORES, RAW, DEBIASED)]
    names = [each.name for each in request.outputs]
    if len(set(names)) < len(names):
        raise InvalidRequest(f"an output is asked for once; got {', '.join(names)}.")
    asked = []
    for each in request.outputs:
        binary = each.parameters.binary_data if each.parameters else None
        count = each.parameters.classification if each.parameters else None
        asked.append(Asked(name=each.name, binary=by_default if binary is None else binary, classification=count))
    return asked
