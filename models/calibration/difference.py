"""What separates two calibrations of one model, class by class and in decisions; and the parts of such a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.calibration.errors import ShapeMismatch
from models.calibration.prior import Ledger
from models.calibration.types import Calibration, ClassPrior, FloatArray, LogitSet

SHOWN = 5


def difference(
    a: Calibration,
    b: Calibration,
    *,
    ledger_a: Ledger,
    ledger_b: Ledger,
    class_names: Sequence[str],
    calibration_set: LogitSet | None = None,
) -> dict[str, Any]:
    """A JSON-ready report of what changes from calibration `a` to `b`; nats are relative to the average class.

    `log_weight_nats` is the change of `offset - log r`, all that is added to `scale * z~` under the uniform target;
    `raised_most` and `lowered_most` are the largest of it. `scale_ratio` and `temperature_ratio` are b / a; the latter
    is null where a calibration scales its classes differently. `decisions` says on how many examples of the set the
    two decide differently under the uniform target; null without a set.

    Raises: ShapeMismatch where the two, their ledgers, the names or the set are not of the same classes.
    """
    _check_alike(a, b, ledger_a, ledger_b, class_names)
    uniform = ClassPrior.uniform(a.num_classes)
    moved = centred(log_weights(b, uniform) - log_weights(a, uniform))
    moved = moved.round(12) + 0.0  # one law written in two ways, as temperature and closed form do, is no change
    return {
        "method_a": a.method,
        "method_b": b.method,
        "temperature_ratio": _temperature_ratio(a, b),
        "mean_absolute_change_nats": float(np.abs(moved).mean()),
        **most_moved(moved, class_names),
        "classes": _classes(a, b, ledger_a, ledger_b, class_names, moved),
        "decisions": _decisions(a, b, uniform, class_names, calibration_set),
    }


def log_weights(calibration: Calibration, target: ClassPrior) -> FloatArray:
    """What is added to `scale * z~`, `(C,)`: minus infinity for a class that cannot occur."""
    return np.asarray(calibration.offset + target.log_probs - calibration.implied_prior.log_probs)


def centred(shift: FloatArray) -> FloatArray:
    """Relative to the mean of the finite entries, `(C,)`: what is added to every class alike changes no score."""
    held = shift[np.isfinite(shift)]
    return shift - held.mean() if held.size else shift


def most_moved(shift: FloatArray, class_names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The classes with the largest shifts up and down, the largest first; nats, null where infinite."""
    order = np.argsort(-np.nan_to_num(shift, neginf=-1e9, posinf=1e9), kind="stable")

    def listed(indices: NDArray[np.intp]) -> list[dict[str, Any]]:
        return [{"class": class_names[index], "shift_nats": finite(shift[index])} for index in indices]

    up, down = order[:SHOWN], order[::-1][:SHOWN]
    return {"raised_most": listed(up[shift[up] > 0]), "lowered_most": listed(down[shift[down] < 0])}


def flips(before: FloatArray, after: FloatArray, class_names: Sequence[str]) -> dict[str, Any]:
    """The share of rows whose largest entry is another class, and the most frequent pairs; both are `(N, C)`, N > 0."""
    pairs = list(zip(before.argmax(axis=1).tolist(), after.argmax(axis=1).tolist(), strict=True))
    flipped = Counter(pair for pair in pairs if pair[0] != pair[1])
    return {
        "share": sum(flipped.values()) / len(pairs),
        "most_frequent": [
            {"from": class_names[old], "to": class_names[new], "items": times}
            for (old, new), times in flipped.most_common(SHOWN)
        ],
    }


def finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _check_alike(
    a: Calibration, b: Calibration, ledger_a: Ledger, ledger_b: Ledger, class_names: Sequence[str]
) -> None:
    sizes = [a.num_classes, b.num_classes, ledger_a.class_counts.size, ledger_b.class_counts.size, len(class_names)]
    if len(set(sizes)) > 1:
        raise ShapeMismatch(
            "two calibrations are compared over the same classes; got "
            f"{sizes[0]} and {sizes[1]} classes, counts of {sizes[2]} and {sizes[3]}, and {sizes[4]} names."
        )


def _temperature_ratio(a: Calibration, b: Calibration) -> float | None:
    """Temperature of `b` over that of `a`; None where one of them scales its classes differently."""
    if np.ptp(a.scale) or np.ptp(b.scale) or not (a.scale[0] > 0 and b.scale[0] > 0):
        return None
    return float(a.scale[0] / b.scale[0])


def _classes(
    a: Calibration, b: Calibration, ledger_a: Ledger, ledger_b: Ledger, class_names: Sequence[str], moved: FloatArray
) -> list[dict[str, Any]]:
    with np.errstate(divide="ignore", invalid="ignore"):  # a scale of 0: null
        ratio = b.scale / a.scale
    nats = {
        "scale_ratio": ratio,
        "offset_nats": centred(b.offset - a.offset),
        "log_implied_prior_nats": centred(b.implied_prior.log_probs - a.implied_prior.log_probs),
        "log_weight_nats": moved,
    }
    counts = {"training_count_a": ledger_a.class_counts, "training_count_b": ledger_b.class_counts}
    return [
        {"class": name}
        | {key: finite(values[index]) for key, values in nats.items()}
        | {key: int(values[index]) for key, values in counts.items()}
        for index, name in enumerate(class_names)
    ]


def _decisions(
    a: Calibration, b: Calibration, uniform: ClassPrior, class_names: Sequence[str], calibration_set: LogitSet | None
) -> dict[str, Any] | None:
    if calibration_set is None or not calibration_set.labels.size:
        return None
    one, other = (each.debias(calibration_set.raw).adjust(uniform).values for each in (a, b))
    return {"items": int(calibration_set.labels.size)} | flips(one, other, class_names)
