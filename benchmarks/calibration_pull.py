"""How strong the pull towards the closed form should be: cross-validated on held-out images, never on test images."""

from itertools import product
from typing import Any

import numpy as np

from benchmarks.calibration_methods import drawn
from models.calibration.affine import Anchor, balanced_weights, fit_affine, item_nll
from models.calibration.choose import folds_of
from models.calibration.temperature import fit_closed_form
from training.run_folder import Run

SIZES = (5, 10, 20)
OFFSET_SDS = (0.35, 0.5, 0.7)
SCALE_SDS = (None, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)  # as a share of the scale; None is one scale for all classes


def compare(run: Run) -> dict[str, Any]:
    """Class-balanced NLL over 5 folds minus that of the closed form, by images a class and standard deviations."""
    found: dict[str, dict[str, float]] = {}
    for per_class in SIZES:
        given = run.calibration_set.subset(drawn(run.calibration_set.labels, per_class, 0))
        folds = folds_of(given.labels, 5)
        gained = {f"{offset_sd} {scale_sd}": 0.0 for offset_sd, scale_sd in product(OFFSET_SDS, SCALE_SDS)}
        for fold in range(5):
            seen, unseen = given.subset(np.flatnonzero(folds != fold)), given.subset(np.flatnonzero(folds == fold))
            base, _ = fit_closed_form(seen, run.ledger.measured_anew(seen))
            weights, scale = balanced_weights(unseen), float(base.scale[0])
            closed = weights @ item_nll(base.debias(unseen.raw).values, unseen)
            for offset_sd, scale_sd in product(OFFSET_SDS, SCALE_SDS):
                anchor = Anchor(scale=scale, offset=base.offset, offset_sd=offset_sd, scale_sd=scale_sd or np.inf)
                fit = fit_affine(seen, anchor=anchor, scale_per_class=scale_sd is not None)
                loss = weights @ item_nll(fit.scale * unseen.logits + fit.offset, unseen)
                gained[f"{offset_sd} {scale_sd}"] += float(loss - closed) / 5
        found[str(per_class)] = {name: round(value, 5) for name, value in gained.items()}
    return {"run": run.folder.name, "gained": found}


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The mean over networks, in thousandths of a nat; less is better."""
    lines = [
        "| images a class | sd of the offsets | one scale | "
        + " | ".join(f"{100 * sd:g} %" for sd in SCALE_SDS[1:] if sd)
    ]
    lines[0] += " |"
    lines.append("| --- " * (2 + len(SCALE_SDS)) + "|")
    for per_class, offset_sd in product(SIZES, OFFSET_SDS):
        means = [
            1000 * np.mean([row["gained"][str(per_class)][f"{offset_sd} {scale_sd}"] for row in rows])
            for scale_sd in SCALE_SDS
        ]
        lines.append(f"| {per_class} | {offset_sd} | " + " | ".join(f"{mean:+.1f}" for mean in means) + " |")
    return "\n".join(lines)
