"""Real runs, trained once a session: the digits take about two seconds."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from training import runs
from training.config import DecoupledConfig
from training.losses.cibl import CiblConfig


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """Cross-entropy, trained as the demonstration trains it, and not fitted."""
    return runs.train_run("digits", out=tmp_path_factory.mktemp("runs") / "cross-entropy")


@pytest.fixture
def run_copy(digits_run, tmp_path) -> Callable[[], Path]:
    """A copy of that run for a test to change."""
    return lambda: Path(shutil.copytree(digits_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def fitted(digits_run, tmp_path_factory) -> Path:
    """The digits with MARC as fitted on held-out images, under a name that is markup."""
    run = Path(shutil.copytree(digits_run, tmp_path_factory.mktemp("fitted") / "<b>x"))
    runs.fit_run(run, method="marc")
    return run


@pytest.fixture(scope="session")
def alphas(tmp_path_factory) -> list[Path]:
    """Two runs with CIBL that differ in alpha, the larger first."""
    folder = tmp_path_factory.mktemp("alphas")
    return [
        runs.train_run("digits", out=folder / f"$_{alpha}", cibl=CiblConfig(alpha=alpha), epochs=2)
        for alpha in (0.5, 0.05)
    ]


@pytest.fixture(scope="session")
def two_stages(tmp_path_factory) -> Path:
    """A second stage by the Meta Sampler, MARC as published, and validation images for the training curve."""
    run = runs.train_run(
        "digits",
        out=tmp_path_factory.mktemp("decoupled") / "meta",
        decoupled=DecoupledConfig(steps=20, batch_size=32),
        epochs=2,
        augmented_passes=1,
    )
    runs.fit_run(run, method="marc-paper")
    return run
