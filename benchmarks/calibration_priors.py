"""The benchmark of label shift: how near each estimator comes to the true class law, and how fast EM is.

    python benchmarks/calibration_priors.py table --probs FOLDER --logits FOLDER
    python benchmarks/calibration_priors.py gain --probs FOLDER --logits FOLDER
    python benchmarks/calibration_priors.py levels
    python benchmarks/calibration_priors.py speed
    python benchmarks/calibration_priors.py show

`table` takes a folder of softmax outputs (.npz with probs and labels, a balanced training set behind them) and one of
long-tailed logits (ce_*.npz, bs_*.npz with logits and labels, and cifar100_lt_ir100.csv with the training counts). Each
repetition splits the labelled outputs anew into a calibration set and a pool, and draws a target sample of every law
and size from the pool; a third part, of 1,000 classes, is simulated. `gain` asks on the same outputs what accepting a
proposal does to the accuracy. `levels` simulates traffic without a shift: how
often the test and the intervals of `propose_prior` are right. Each row is printed, and written to
benchmarks/results/calibration_priors.jsonl in place of earlier ones of the same command. Needs quapy and abstention.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from abstention.calibration import TempScaling
from abstention.label_shift import EMImbalanceAdapter
from quapy.method.aggregative import ACC, EMQ, PACC

from benchmarks.calibration_priors_data import PER_CLASS, Draw, laws, simulated, sources, split
from benchmarks.calibration_priors_table import RESULTS, as_markdown, read_rows
from models.calibration.bbse import Confusion, bbse
from models.calibration.em import em_prior
from models.calibration.label_shift import estimate_law, measured_at_uniform, propose_prior
from models.calibration.prior import Ledger
from models.calibration.temperature import fit_bcts
from models.calibration.types import ClassPrior, FloatArray, LogitSet, RawLogits, softmax

REPETITIONS, GAIN_REPETITIONS = 10, 6
TAIL = (200, 100, 50, 25, 12, 8, 5, 3, 2, 2)  # calibration examples a class that follow a long tail themselves
SIZES = {10: (100, 1000, 3000), 100: (100, 1000, 3000), 1000: (3000, 30_000)}


class Estimators:
    """Every estimator, fitted on one calibration set."""

    def __init__(self, calibration_set: LogitSet, ledger: Ledger) -> None:
        self.labels, num_classes = calibration_set.labels, calibration_set.num_classes
        self.calibration, _ = fit_bcts(calibration_set, ledger)
        debiased = self.calibration.debias(calibration_set.raw)
        self.implied, self.ours = measured_at_uniform(debiased, calibration_set), debiased.scores()
        self.confusion = Confusion.of(self.ours, self.labels)
        self.rates = PACC.getPteCondEstim(np.arange(num_classes), self.labels, self.ours)
        self.raw = softmax(calibration_set.logits)
        self.one_hot = np.eye(num_classes)[self.labels]
        self.theirs: Callable[[FloatArray], FloatArray] | None = None
        if num_classes < 1000:  # their BCTS takes minutes there
            factory = TempScaling(bias_positions="all")
            self.theirs = factory(self.raw, self.one_hot, posterior_supplied=True)

    def estimates(self, raw: FloatArray) -> Iterator[tuple[str, FloatArray]]:
        """The estimators, by name; `(C,)` each."""
        debiased = self.calibration.debias(RawLogits(raw))
        scores, implied = debiased.scores(), self.implied.probs
        spread = 1.0 + raw.shape[0] / self.labels.size
        yield "MAP-EM", estimate_law(debiased, self.implied, spread=spread)[1].probs
        yield "ML-EM", em_prior(debiased.values, self.implied, pseudo_counts=0.0).prior.probs / implied
        yield "BBSE", bbse(self.confusion, scores.mean(axis=0)).probs
        yield "EMQ", EMQ.EM(implied, scores)[0] / implied
        if implied.size < 1000:  # a quadratic programme by a general solver: minutes there
            yield "PACC", ACC.solve_adjustment(self.rates, scores.mean(axis=0), method="inversion", solver="minimize")
        adapter = EMImbalanceAdapter()(scores, self.ours)
        yield "abstention EM", adapter.multipliers
        if self.theirs is not None:
            theirs, labelled = self.theirs(softmax(raw)), self.theirs(self.raw)
            mean = labelled.mean(axis=0)
            yield "EMQ, own BCTS", EMQ.EM(mean, theirs)[0]
            own = EMImbalanceAdapter(calibrator_factory=TempScaling(bias_positions="all"))
            own.calibrator_factory = lambda **_: self.theirs  # the same fit, once for all samples
            yield "abstention EM, own BCTS", own(softmax(raw), self.raw, self.one_hot).multipliers * mean


def one(name: str, calibration_set: LogitSet, ledger: Ledger, draw: Draw, seed: int) -> Iterator[dict[str, object]]:
    """The rows of one repetition: total variation of every estimate to the law that was drawn from."""
    rng, num_classes = np.random.default_rng(seed), calibration_set.num_classes
    estimators = Estimators(calibration_set, ledger)
    for size in SIZES[num_classes]:
        for law_name, law in laws(num_classes, rng).items():
            row: dict[str, object] = {"command": "table", "data": name, "classes": num_classes, "items": size}
            row |= {"law": law_name, "seed": seed, "calibration_items": int(calibration_set.labels.size)}
            found = {}
            for method, weights in estimators.estimates(draw(rng, law, size)[0]):
                found[method] = round(0.5 * float(np.abs(weights / weights.sum() - law).sum()), 5)
            yield row | {"tv": found}


def table(probs: Path, logits: Path) -> Iterator[dict[str, object]]:
    for name, raw, labels, ledger, per_class in sources(probs, logits):
        for seed in range(REPETITIONS):
            calibration_set, draw = split(raw, labels, per_class, seed)
            yield from one(name, calibration_set, ledger, draw, seed)
    for seed in range(REPETITIONS // 3):
        calibration_set, ledger, draw = simulated(1000, PER_CLASS, seed)
        yield from one("simulated", calibration_set, ledger, draw, seed)


def gain(probs: Path, logits: Path) -> Iterator[dict[str, object]]:
    """Accuracy on traffic under the present prior (uniform), the estimate, what is proposed, and the true law."""
    for name, raw, labels, ledger, per_class in sources(probs, logits):
        num_classes = raw.shape[1]
        uniform = ClassPrior.uniform(num_classes)
        for seed in range(GAIN_REPETITIONS):
            calibration_set, draw = split(raw, labels, per_class, seed)
            rng = np.random.default_rng(seed)
            for law_name, law in laws(num_classes, rng).items():
                seen, truth = draw(rng, law, 30 * num_classes)
                proposal = propose_prior(RawLogits(seen), calibration_set, ledger, present=uniform)
                debiased = proposal.calibration.debias(RawLogits(seen))
                priors = {
                    "present": uniform,
                    "estimate": proposal.estimate,
                    "proposed": proposal.proposed,
                    "true": ClassPrior(law),
                }
                right = {
                    said: round(float((debiased.adjust(prior).values.argmax(axis=1) == truth).mean()), 5)
                    for said, prior in priors.items()
                }
                yield {"command": "gain", "data": name, "law": law_name, "seed": seed, "accuracy": right}


def levels() -> Iterator[dict[str, object]]:
    """Traffic that follows the present prior: how often a shift is found, and how often intervals hold the truth."""
    for num_classes, repetitions in ((10, 200), (100, 20)):
        for said, per_class in {"5": 5, "20": 20, "100": 100, "200 to 2": TAIL}.items():
            if said == "200 to 2" and num_classes != len(TAIL):
                continue
            for spread in (0.6, 1.2):
                for law_name in ("long-tailed", "uniform", "reversed"):
                    found = []
                    for seed in range(repetitions):
                        calibration_set, ledger, draw = simulated(
                            num_classes, np.asarray(per_class), seed, spread=spread, dimensions=12
                        )
                        rng = np.random.default_rng(seed)
                        law = ClassPrior(laws(num_classes, rng)[law_name])
                        items, _ = draw(rng, law.probs, 30 * num_classes)
                        proposal = propose_prior(RawLogits(items), calibration_set, ledger, present=law)
                        assert proposal.test is not None
                        held = (proposal.low <= law.probs) & (law.probs <= proposal.high)
                        distance = 0.5 * float(np.abs(proposal.estimate.probs - law.probs).sum())
                        inside = distance <= proposal.tv_half_width
                        found.append([proposal.test.p_value, held.mean(), inside, proposal.recommended, distance])
                    p_values, *others = np.array(found, dtype=np.float64).T
                    yield {
                        "command": "levels",
                        "classes": num_classes,
                        "calibration_per_class": said,
                        "spread": spread,
                        "law": law_name,
                        "repetitions": repetitions,
                        "found_at": {str(level): float((p_values < level).mean()) for level in (0.01, 0.05, 0.1, 0.5)},
                        **dict(
                            zip(
                                ("covered", "within", "recommended", "tv"),
                                (float(o.mean()) for o in others),
                                strict=True,
                            )
                        ),
                    }


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """The fastest of three calls in seconds, and what it answers."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - began)
    return min(seconds), result


def speed() -> Iterator[dict[str, object]]:
    """ML-EM from logits against EMQ from posteriors, at equal L1 tolerance: EMQ's epsilon is that of the mean."""
    for num_items, num_classes in ((3000, 10), (3000, 100), (10_000, 100), (100_000, 1000)):
        _, ledger, draw = simulated(num_classes, 5, 0)
        rng = np.random.default_rng(0)
        law = laws(num_classes, rng)["Dirichlet(0.5)"]
        logits = draw(rng, law, num_items)[0] / 1.3
        implied, posteriors = ledger.implied_prior, softmax(logits)
        row: dict[str, object] = {"command": "speed", "items": num_items, "classes": num_classes}
        for tolerance in (1e-3, 1e-5):
            ours, result = timed(partial(em_prior, logits, implied, pseudo_counts=0.0, tolerance=tolerance))
            theirs, (estimate, _) = timed(partial(EMQ.EM, implied.probs, posteriors, tolerance / num_classes))
            row[f"tolerance {tolerance:g}"] = {
                "ours_seconds": round(ours, 4),
                "ours_passes": result.iterations,
                "emq_seconds": round(theirs, 4),
                "tv_ours": round(0.5 * float(np.abs(result.prior.probs - law).sum()), 4),
                "tv_emq": round(0.5 * float(np.abs(estimate - law).sum()), 4),
            }
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("table", "gain"):
        folders = commands.add_parser(name)
        folders.add_argument("--probs", type=Path, required=True)
        folders.add_argument("--logits", type=Path, required=True)
    for name in ("levels", "speed", "show"):
        commands.add_parser(name)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="quapy")
    if args.command == "show":
        print(as_markdown(read_rows()))
        return
    commands_of = {
        "table": lambda: table(args.probs, args.logits),
        "gain": lambda: gain(args.probs, args.logits),
        "levels": levels,
        "speed": speed,
    }
    rows = commands_of[args.command]()
    new = []
    for row in rows:
        new.append(row)
        print(json.dumps(row), flush=True)
    kept = [row for row in read_rows() if row["command"] != args.command]
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in kept + new))


if __name__ == "__main__":
    main()
