"""ONNX graphs of bundles, bytes in and bytes out: the standard form, classifiers made elsewhere, recalibration."""

import os

# onnxruntime sends usage reports to its maker unless told not to before it loads. Set the variable to 0 to allow them.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # noqa: TID251
