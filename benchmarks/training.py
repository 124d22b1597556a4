"""The training benchmark: accuracy of every method in one table, and the speed of a step.

    python benchmarks/training.py table --data FILE --runs RUNS [--only NAME ...] [--seeds 0 1 2] [--minutes 8]
    python benchmarks/training.py show
    python benchmarks/training.py speed --data FILE

`table` trains the recipes that have no row yet in benchmarks/results/training.jsonl, fits every calibration on each,
and adds the row. It may be stopped at any moment and called again, also in calls of a few minutes (--minutes): a
training goes on from its last epoch in RUNS. It needs the packages of the extra `train` (of which timm, onnx,
scikit-learn and matplotlib are not used here) and one data file: an .npz with x_train, y_train, x_test, y_test,
x_holdout, y_holdout, class_names, or the same as a .zip of lossless WebP strips. `show` prints the table as it stands
in docs/results.md.
"""

import argparse
import base64
import io
import json
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from benchmarks.training_speed import measure_speed
from benchmarks.training_table import RESULTS, as_markdown, read_results
from models.calibration.marc_paper import published_scores
from models.calibration.metrics import evaluate
from models.calibration.metrics_detail import class_wise_ece, macro_f1
from models.calibration.types import ClassPrior, FloatArray
from training import recipes, runs
from training.run_folder import Run, read_calibration, read_run

FITS = ("closed-form", "marc", "marc-paper", "choose")


class OutOfTime(Exception):
    """The minutes given are over; the checkpoint of the last epoch is written."""


def table(args: argparse.Namespace) -> None:
    deadline = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    data = unpacked(args.data, args.runs)
    for seed in args.seeds:
        for name in args.only or [each.name for each in recipes.short_cifar100_lt()]:
            key = {"recipe": name, "seed": seed, "data": args.data.stem}
            if any(all(row[part] == value for part, value in key.items()) for row in read_results()):
                print(name, seed, "done already")
                continue
            try:
                row = key | cell(name, seed, data, args.runs, deadline)
            except OutOfTime:
                print(name, seed, "stopped at the time limit; call again to go on")
                return
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(name, seed, {fit: round(100 * of["accuracy"][0], 1) for fit, of in row["figures"].items()})


def cell(name: str, seed: int, data: Path, folder: Path, deadline: float) -> dict[str, object]:
    """Train, or go on, then fit and measure."""
    recipe = recipes.recipe(name)
    config = replace(recipe.config, seed=seed)
    out, began = folder / f"{data.stem}-{name}-{seed}", time.monotonic()
    first_stage = None
    if config.decoupled is not None:
        first_stage = folder / f"{data.stem}-{name.replace('balms', 'ce')}-{seed}"
        first_stage = first_stage if (first_stage / "run.json").exists() else None

    def progress(epoch: int, epochs: int, loss: float) -> None:
        print(
            f"{name} seed {seed}: epoch {epoch} of {epochs}, loss {loss:.3f}, {time.monotonic() - began:.0f} s",
            flush=True,
        )
        if time.monotonic() > deadline and epoch < epochs:
            raise OutOfTime

    if not (out / "run.json").exists():
        passes = recipe.augmented_passes
        runs.train_run(
            str(data), out=out, config=config, augmented_passes=passes, first_stage=first_stage, progress=progress
        )
    return measured(out)


def measured(folder: Path) -> dict[str, object]:
    """The row of a complete run: figures with intervals for raw logits and each calibration, and which test images each
    has right (bits, base64), so that any two rows can be compared image by image."""
    run = read_run(folder)
    uniform = ClassPrior.uniform(run.test_set.num_classes)
    scores = {"raw": run.test_set.raw.scores()}
    reasons = {}
    for fit in FITS:
        reasons[fit] = runs.fit_run(folder, method=fit).reason
        calibration = read_calibration(folder)
        if fit == "marc-paper":
            scores["marc-paper-as-published"] = published_scores(calibration, run.test_set.raw)
        scores[fit] = calibration.debias(run.test_set.raw).adjust(uniform).scores()
    curves = json.loads((folder / "curves.json").read_text())
    return {
        "figures": {fit: figures(run, values) for fit, values in scores.items()},
        "reasons": reasons,
        "correct": {fit: bits(values.argmax(axis=1) == run.test_set.labels) for fit, values in scores.items()},
        "ledger": {"source": run.ledger.source, "gap_to_rule": run.ledger.gap_to_rule},
        "seconds_an_epoch": round(float(np.median([row["seconds"] for row in curves])), 1) if curves else None,
        "machine": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads",
        "torch": torch.__version__,
        "code": run.description["provenance"]["code"],
        "data_sha256": run.description["provenance"]["data_sha256"],
        "class_counts": run.ledger.class_counts.tolist(),
    }


def figures(run: Run, scores: FloatArray) -> dict[str, list[float | None]]:
    """[value, low, high] of each figure."""
    labels, counts = run.test_set.labels, run.ledger.class_counts
    metrics = evaluate(scores, labels, class_counts=counts, target=ClassPrior.uniform(counts.size))
    found = {
        name: [getattr(metrics, part).value, getattr(metrics, part).low, getattr(metrics, part).high]
        for name, part in {"accuracy": "balanced_accuracy", "many": "many", "medium": "medium", "few": "few"}.items()
    }
    for name in ("ece", "nll"):
        found[name] = [getattr(metrics, name).value, getattr(metrics, name).low, getattr(metrics, name).high]
    return found | {"class_wise_ece": [class_wise_ece(scores, labels)], "macro_f1": [macro_f1(scores, labels)]}


def bits(correct: np.ndarray) -> str:
    return base64.b64encode(np.packbits(correct).tobytes()).decode()


def unpacked(path: Path, folder: Path) -> Path:
    """The data as an .npz; a .zip holds, for each split, WebP strips of images one below the other and labels.npy."""
    if path.suffix == ".npz":
        return path
    target = folder / f"{path.stem}.npz"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive:
        names = sorted(archive.namelist())
        for split in ("train", "test", "holdout"):
            strips = [name for name in names if name.startswith(f"{split}/") and name.endswith(".webp")]
            images = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in strips]
            if images:
                arrays[f"x_{split}"] = np.concatenate(images).reshape(-1, 32, 32, 3)
                arrays[f"y_{split}"] = np.load(io.BytesIO(archive.read(f"{split}/labels.npy"))).astype(np.int64)
        arrays["class_names"] = np.array(archive.read("class_names.txt").decode().split("\n"))
    partial = folder / f".{path.stem}.partial.npz"
    np.savez(partial, **arrays)
    partial.replace(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("table")
    make.add_argument("--data", type=Path, required=True)
    make.add_argument("--runs", type=Path, required=True, help="folder for the runs, kept between calls")
    make.add_argument("--only", nargs="*", help="names of recipes; all of the short table without it")
    make.add_argument("--seeds", type=int, nargs="*", default=[0])
    make.add_argument("--minutes", type=float, help="stop after the epoch in which these are over")
    commands.add_parser("show")
    speed = commands.add_parser("speed")
    speed.add_argument("--data", type=Path, required=True)
    speed.add_argument("--runs", type=Path, default=Path("build/benchmarks"))
    args = parser.parse_args()
    if args.command == "table":
        table(args)
    elif args.command == "show":
        print(as_markdown(read_results()))
    else:
        measure_speed(unpacked(args.data, args.runs))


if __name__ == "__main__":
    main()
