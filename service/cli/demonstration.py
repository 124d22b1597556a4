"""`equipoise demo`: handwritten digits with a long tail, from training to a recalibrated service, with real HTTP."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from rich.table import Table

from models.calibration.errors import CalibrationError
from models.calibration.manifest import Manifest
from models.calibration.types import ClassPrior, FloatArray, RawLogits
from service import server
from service.cli.terminal import EpochsBar, console, figures_table, say
from service.cli.training import load_training
from service.settings import Settings

HOST = "127.0.0.1"
MODEL = "digits"
IMAGE, FREQUENCIES = "digit.png", "frequencies.csv"
START_SECONDS = 60.0
PATIENT = {"Prefer": "wait=60"}  # where the machine is busy, an upload would be answered with its job instead
MIN_GAIN = 0.03  # of balanced accuracy, debiased over raw


class DemoFailed(CalibrationError):
    """The demonstration ran and something is not as it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What the first half leaves: the bundle, and figures of the served run, raw and debiased."""

    bundle: Path
    rows: dict[str, Any]
    debiased: str


def run(folder: Path, *, port: int, once: bool) -> None:
    """Make everything under `folder` anew, then serve it; with `once`, check it over HTTP and stop.

    Raises: DemoFailed when a check of `once` fails, CalibrationError for everything expected.
    """
    server.listen(Settings(host=HOST, port=port)).close()  # a port in use is better known before the training
    made = make(folder)
    if once:
        with _server(folder, made.bundle, port) as base:
            checks = _conversation(folder, made, base)
        failed = [what for what, passed in checks.items() if not passed]
        for what, passed in checks.items():
            say(f"{'ok    ' if passed else 'FAILED'} {what}")
        if failed:
            raise DemoFailed(f"{len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}.")
        return
    say(_what_to_try(folder, port))
    sys.stdout.flush()  # what is still in the buffer would be lost
    command = _serve_command(folder, made.bundle, port)
    os.execv(command[0], command)  # the server takes this process over, so that torch's memory is free


def make(folder: Path) -> Made:
    """Train twice, fit, export; print the figures."""
    _clear(folder)
    with console.status("loading torch"):
        runs = load_training("runs")
    rows: dict[str, Any] = {}
    for loss in ("cross-entropy", "balanced-softmax"):
        with EpochsBar(f"training with {loss}") as progress:
            runs.train_run("digits", out=folder / loss, loss=loss, progress=progress)
    served = folder / "cross-entropy"
    for method in ("closed-form", "marc", "choose"):
        choice = runs.fit_run(served, method=method)
        figures = runs.evaluate_run(served)
        rows.setdefault("cross-entropy, raw", figures["raw"])
        label = f"cross-entropy, {method}" + (f" ({choice.calibration.method})" if method == "choose" else "")
        rows[label] = figures["debiased"]
        debiased = label
    runs.fit_run(folder / "balanced-softmax", method="choose")
    balanced = runs.evaluate_run(folder / "balanced-softmax")
    rows |= {"balanced softmax, raw": balanced["raw"], "balanced softmax, choose": balanced["debiased"]}
    console.print(figures_table(rows))
    say("400 balanced test images; accuracy by training images a class: many > 100, few < 20; in percent.")
    say(choice.reason)
    bundle = folder / MODEL
    with console.status("exporting to ONNX"):
        manifest = runs.export_run(served, bundle, name=MODEL)
    say(f"Bundle {bundle}; ONNX and torch differ by {manifest.metrics['onnx_parity']:.1e} at most.")
    _write_examples(folder, runs)
    return Made(bundle=bundle, rows=rows, debiased=debiased)


def _clear(folder: Path) -> None:
    """Only a folder that an earlier demonstration made is emptied."""
    if folder.exists() and any(folder.iterdir()) and not (folder / ".demo").exists():
        raise CalibrationError(f"{folder} holds other things. Choose another --folder, or empty it.")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        (folder / ".demo").touch()
    except OSError as error:
        raise CalibrationError(f"{folder} cannot be written: {error.strerror}. Choose another --folder.") from error


def _write_examples(folder: Path, runs: Any) -> None:
    """An image that the raw classifier gets wrong and the debiased one right, and a frequency file: the training
    law reversed, as if the digits rare in training were the common ones here."""
    run, test = runs.read_run(folder / "cross-entropy"), load_training("data").load("digits").test
    calibration = runs.read_calibration(folder / "cross-entropy")
    raw = run.test_set.raw
    debiased = calibration.debias(raw).adjust(ClassPrior.uniform(10)).scores()
    mended = (raw.scores().argmax(axis=1) != test.labels) & (debiased.argmax(axis=1) == test.labels)
    chosen = int(np.where(mended, debiased.max(axis=1), 2.0).argmin())
    Image.fromarray(test.images[chosen]).save(folder / IMAGE)
    counts = run.ledger.class_counts[::-1]
    lines = [f"{name},{count}" for name, count in zip(run.description["class_names"], counts, strict=True)]
    (folder / FREQUENCIES).write_text("\n".join(["class,count", *lines, ""]))


def _conversation(folder: Path, made: Made, base: str) -> dict[str, bool]:
    """Score, upload, score, undo, score over HTTP; what was checked, and whether it holds."""
    image, frequencies = (folder / IMAGE).read_bytes(), (folder / FREQUENCIES).read_bytes()
    with httpx.Client(base_url=f"{base}/v1/models/{MODEL}", timeout=90.0) as client:

        def score() -> httpx.Response:
            return client.post(
                "/scores", content=image, params={"explain": "true"}, headers={"Content-Type": "image/png"}
            )

        first = _ok(score())
        upload = _ok(client.post("/class-frequencies", content=frequencies, params={"role": "target"}, headers=PATIENT))
        second = _ok(score())
        undo = upload.json()["undo"]
        _ok(httpx.request(undo["method"], base + undo["href"], timeout=30.0))
        third = _ok(score())
    _print_change(first.json(), second.json(), upload.json())
    rows = made.rows
    raw, debiased = rows["cross-entropy, raw"], rows[made.debiased]
    gap = float(np.abs(_scores(second) - _by_formula(made.bundle, first, frequencies)).max())
    gain = debiased.balanced_accuracy.value - raw.balanced_accuracy.value
    return {
        f"debiased balanced accuracy beats raw by 3 points or more ({100 * gain:+.1f})": gain >= MIN_GAIN,
        f"few-shot accuracy rises ({100 * (debiased.few.value - raw.few.value):+.1f} points)": (
            debiased.few.value > raw.few.value
        ),
        f"scores after the upload equal the NumPy formula to 1e-6 ({gap:.1e})": gap <= 1e-6,
        "the upload changed the scores": not np.array_equal(_scores(first), _scores(second)),
        "undo restores the first answer byte for byte": first.content == third.content,
    }


def _by_formula(bundle: Path, answer: httpx.Response, frequencies: bytes) -> FloatArray:
    """softmax(scale * z~ + offset + log target - log r), from the raw probabilities of an answer and the manifest."""
    raw = answer.json()["results"][0]["explain"]["raw"]
    target = np.array([float(line.split(",")[1]) for line in frequencies.decode().split()[1:]])
    calibration = Manifest.from_json(json.loads((bundle / "manifest.json").read_bytes())).calibration
    z = RawLogits(np.log(np.array([raw]))).values
    logits = calibration.scale * z + calibration.offset + np.log(target) - calibration.implied_prior.log_probs
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def _scores(answer: httpx.Response) -> FloatArray:
    return np.array([answer.json()["results"][0]["scores"]])


def _ok(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        raise DemoFailed(f"{response.request.method} {response.request.url} answered {response.text}")
    return response


def _print_change(first: dict[str, Any], second: dict[str, Any], report: dict[str, Any]) -> None:
    before, after = first["results"][0], second["results"][0]
    table = Table("digit", "raw", "debiased, uniform prior", f"after {FREQUENCIES}")
    columns = zip(before["explain"]["raw"], before["scores"], after["scores"], strict=True)
    for digit, values in enumerate(columns):
        table.add_row(str(digit), *(f"{value:.4f}" for value in values))
    say(f"\nScores of {IMAGE}: class {before['class']} before the upload, {after['class']} after it.")
    console.print(table)
    measured, flips = report["metrics"], report["flips"]
    accuracies = [f"{100 * measured[when]['accuracy']['value']:.1f}" for when in ("before", "after")]
    say(
        f"Where classes occur as in {FREQUENCIES}, accuracy goes from {accuracies[0]} to {accuracies[1]} % "
        f"(out-of-fold, {measured['sample']['items']['all']} images); {100 * flips['share']:.1f} % of decisions flip.\n"
    )


@contextmanager
def _server(folder: Path, bundle: Path, port: int) -> Iterator[str]:
    """The service in a process of its own, ready; stopped at the end."""
    base = f"http://{HOST}:{port}"
    log_file = folder / "server.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(_serve_command(folder, bundle, port), stdout=log, stderr=subprocess.STDOUT)
    try:
        with console.status("starting the service"):
            _wait_until_ready(process, base, log_file)
        yield base
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_ready(process: "subprocess.Popen[bytes]", base: str, log_file: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(base_url=base, timeout=2.0) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise DemoFailed(f"the service did not start: {log_file.read_text().strip()}")
            try:
                if client.get("/v2/health/ready").status_code == 200:
                    return
            except httpx.HTTPError:
                pass  # not listening yet
            time.sleep(0.1)
    raise DemoFailed(f"the service was not ready after {START_SECONDS:.0f} s; see {log_file}.")


def _serve_command(folder: Path, bundle: Path, port: int) -> list[str]:
    options = ["--port", str(port), "--host", HOST, "--state-dir", str(folder / "state")]
    return [sys.executable, "-m", "service", "serve", str(bundle), *options]


def _what_to_try(folder: Path, port: int) -> str:
    model = f"http://{HOST}:{port}/v1/models/{MODEL}"
    return f"""
Serving on http://{HOST}:{port} (Ctrl-C stops it; API documentation at /docs). In another terminal:

  curl -s --data-binary @{folder / IMAGE} '{model}/scores?top_k=3'
  curl -s --data-binary @{folder / FREQUENCIES} '{model}/class-frequencies?role=target'
  curl -s --data-binary @{folder / IMAGE} '{model}/scores?top_k=3'
  curl -s -X POST '{model}/undo'
"""
