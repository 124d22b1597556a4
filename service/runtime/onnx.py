"""The network, run by onnxruntime: one session, which many threads may use at once."""

import tempfile
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from models.calibration.apply import Float32Array
from models.calibration.manifest import MODEL_FILE, InputSize
from models.images import UInt8Array
from service.errors import InvalidBundle

OUTPUT = "logits"
GPU, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
ON_GPU = GPU in ort.get_available_providers()  # onnxruntime-gpu is installed, in the place of onnxruntime
MAX_BATCH = 32 if ON_GPU else 8  # images a run; on a CPU more gain nothing, and hold a thread for longer


class LogitRunner(Protocol):
    """Anything that turns pixels into raw logits."""

    num_classes: int

    def run(self, images: UInt8Array) -> Float32Array:
        """uint8 RGB `(N, H, W, 3)` to raw logits `(N, C)`."""
        ...


class OnnxRunner:
    """The `logits` of a bundle's graph; its calibration is applied elsewhere, so that it can change without a reload.

    On a CPU every run uses one thread: more callers, not more threads a run, use the processors best, and nothing spins
    where a container shares them. A GPU has one caller, and takes more at once.

    Raises: InvalidBundle when the graph cannot be read, is not one file, does not fit the manifest, or fails a dry run.
    """

    def __init__(self, model: bytes, *, num_classes: int, input_size: InputSize) -> None:
        self.num_classes = num_classes
        self._session = _session(model)
        self._input = _check_signature(self._session, input_size)
        self._probe(input_size)

    def run(self, images: UInt8Array) -> Float32Array:
        if len(images) <= MAX_BATCH:
            return self._run_one(images)
        chunks = [images[start : start + MAX_BATCH] for start in range(0, len(images), MAX_BATCH)]
        return np.concatenate([self._run_one(chunk) for chunk in chunks])

    def _run_one(self, images: UInt8Array) -> Float32Array:
        (logits,) = self._session.run([OUTPUT], {self._input: images})
        return np.asarray(logits, dtype=np.float32)

    def _probe(self, size: InputSize) -> None:
        """Two images, one black and one white, because a graph exported for a batch of one would fail later."""
        images = np.zeros((2, size.height, size.width, 3), dtype=np.uint8)
        images[1] = 255
        try:
            logits = self._run_one(images)
        except Exception as error:  # onnxruntime's errors have no common parent below Exception
            raise InvalidBundle(f"{MODEL_FILE} does not run on two images: {error}. Export it again.") from error
        if logits.shape != (2, self.num_classes):
            raise InvalidBundle(
                f"the output {OUTPUT!r} of {MODEL_FILE} must be (N, {self.num_classes}) as the manifest's classes; "
                f"two images gave {logits.shape}. Export graph and manifest together."
            )
        if not np.isfinite(logits).all():
            raise InvalidBundle(f"{MODEL_FILE} gives logits that are not finite for a black or a white image.")


def _session(model: bytes) -> Any:
    options = ort.SessionOptions()
    if not ON_GPU:
        options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong arrives as an exception
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # A graph read from memory would look for its external data in the working directory: give it an empty one.
    with tempfile.TemporaryDirectory() as empty:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", empty)
        try:
            return ort.InferenceSession(model, options, providers=[GPU, CPU] if ON_GPU else [CPU])
        except Exception as error:  # as above
            if "external data" in str(error).lower():
                raise InvalidBundle(
                    f"{MODEL_FILE} keeps weights outside of itself (ONNX external data). Export it as one file."
                ) from error
            raise InvalidBundle(f"{MODEL_FILE} cannot be read: {error}. Export it again.") from error


def _check_signature(session: Any, size: InputSize) -> str:
    """The name of the one input, uint8 `(N, H, W, 3)` of the manifest's size; there must be an output `logits`."""
    inputs = session.get_inputs()
    shown = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
    wanted = f"one input uint8 (N, {size.height}, {size.width}, 3)"
    fits = len(inputs) == 1 and inputs[0].type == "tensor(uint8)" and len(inputs[0].shape) == 4
    pairs = zip(inputs[0].shape[1:], (size.height, size.width, 3), strict=True) if fits else []
    if not fits or any(isinstance(has, int) and has != wants for has, wants in pairs):
        raise InvalidBundle(f"{MODEL_FILE} must take {wanted} as its manifest says; it takes {shown}.")
    outputs = [each.name for each in session.get_outputs()]
    if OUTPUT not in outputs:
        raise InvalidBundle(f"{MODEL_FILE} must have an output {OUTPUT!r}; it has {', '.join(outputs)}.")
    return str(inputs[0].name)
