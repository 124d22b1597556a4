"""Real runs, trained once a session: the digits take about two seconds."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from training import runs


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """Cross-entropy, trained as the demonstration trains it, and not fitted."""
    return runs.train_run("digits", out=tmp_path_factory.mktemp("runs") / "cross-entropy")


@pytest.fixture
def run_copy(digits_run, tmp_path) -> Callable[[], Path]:
    """A copy of that run for a test to change."""
    return lambda: Path(shutil.copytree(digits_run, tmp_path / "run"))
