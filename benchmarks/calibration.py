"""The calibration benchmark: every post-hoc method side by side, and the speed of fits and of applying them.

    python benchmarks/calibration.py methods RUN [RUN ...]
    python benchmarks/calibration.py implied RUN [RUN ...]
    python benchmarks/calibration.py pull RUN [RUN ...]
    python benchmarks/calibration.py speed
    python benchmarks/calibration.py show

`methods` takes the folders of finished trainings (`equipoise train --augmented-passes 5 --out RUN`) with 20 held-out
images of every class, and writes benchmarks/results/calibration_methods.jsonl. `implied` asks of such trainings what an
implied prior from few images is worth, `pull` how strong the fits' pull to the closed form should be, both beside it
in files of their names. `speed` simulates its logits and writes
benchmarks/results/calibration_speed.json. `show` prints the tables as they stand in docs/calibration.md. Estimating
the prior and prediction sets have benchmarks of their own: calibration_priors.py and calibration_sets.py.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import calibration_implied, calibration_pull, calibration_speed
from benchmarks.calibration_methods import as_markdown, compare
from training.run_folder import read_run

RESULTS = Path(__file__).resolve().parent / "results"
METHODS = RESULTS / "calibration_methods.jsonl"
IMPLIED = RESULTS / "calibration_implied.jsonl"
PULL = RESULTS / "calibration_pull.jsonl"
SIZES = (1, 2, 5, 10, 20)
TWO_FOLD = 50  # images of a class in half of CIFAR-100's test set


def methods(folders: list[Path]) -> None:
    rows = []
    for folder in folders:
        run = read_run(folder)
        network = run.ledger.trained_with.replace("-", " ")
        for per_class in SIZES:
            rows.append({"network": network, **compare(run, per_class)})
            print(network, per_class, rows[-1]["chosen"], rows[-1]["failed"], flush=True)
        rows.append({"network": network, **compare(run, TWO_FOLD, two_fold=True)})
    METHODS.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_methods() -> list[dict[str, object]]:
    return [json.loads(line) for line in METHODS.read_text().splitlines()]


def read_implied() -> list[dict[str, object]]:
    return [json.loads(line) for line in IMPLIED.read_text().splitlines()]


def read_pull() -> list[dict[str, object]]:
    return [json.loads(line) for line in PULL.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("methods").add_argument("runs", type=Path, nargs="+")
    for name in ("implied", "pull"):
        commands.add_parser(name).add_argument("runs", type=Path, nargs="+")
    commands.add_parser("speed")
    commands.add_parser("show")
    args = parser.parse_args()
    if args.command == "methods":
        methods(args.runs)
    elif args.command == "implied":
        rows = [calibration_implied.compare(read_run(folder)) for folder in args.runs]
        IMPLIED.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif args.command == "pull":
        rows = [calibration_pull.compare(read_run(folder)) for folder in args.runs]
        PULL.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif args.command == "speed":
        calibration_speed.measure()
    else:
        implied = calibration_implied.as_markdown(read_implied())
        implied += "\n\n" + calibration_implied.natural_as_markdown(read_implied())
        pull = calibration_pull.as_markdown(read_pull())
        print(as_markdown(read_methods()), implied, pull, calibration_speed.as_markdown(), sep="\n\n")


if __name__ == "__main__":
    main()
