"""What serving must never load, asked of a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROBE = """
import sys
import service.app, service.server
print(sorted({"torch", "training", "models.networks", "onnx", "sklearn", "PIL.ImageTk"} & set(sys.modules)))
"""


def test_serving_never_loads_torch_or_training() -> None:
    out = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def test_only_the_settings_read_the_environment() -> None:
    readers = [path for path in (ROOT / "service").rglob("*.py") if "os.environ" in path.read_text()]
    assert readers == []
