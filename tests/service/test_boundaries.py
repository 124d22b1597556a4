"""What serving must never load, asked of a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    readers = {path for path in (ROOT / "service").rglob("*.py") if "os.environ" in path.read_text()}
    sets_one = ROOT / "service/runtime/__init__.py"  # for onnxruntime; it reads none
    assert readers == {ROOT / "service/settings.py", sets_one}


@pytest.mark.parametrize("module", ["service.app", "models.onnx_graph.graph"])
def test_onnxruntime_is_told_to_report_nothing_before_it_loads(module: str) -> None:
    probe = f"""
import os, sys
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
class Watch:
    def find_spec(self, name, *_):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Watch())
import {module}
"""
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.split() == ["1"]
