"""What answers requests: sessions of the network, the live models, and the way from bytes to scores."""

import os

# onnxruntime sends usage reports to its maker unless told not to before it loads. Set the variable to 0 to allow them.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # noqa: TID251
