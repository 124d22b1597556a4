"""What an uploaded file does to a model: class frequencies, or labelled examples. Run by a worker, under a lease.

Each function plans on the newest state, measures before and after, and gives the plan with the answer for the client; a
dry run stops there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from models.calibration.choose import choose
from models.calibration.frequencies import Format, Frequencies, Missing, Role, Zeros, read_frequencies
from models.calibration.manifest import (
    Manifest,
    calibration_from_json,
    calibration_to_json,
    ledger_from_json,
    ledger_to_json,
)
from models.calibration.recalibrate import Deployment, OutOfFold, compare, with_target, with_training_counts
from models.calibration.types import ClassPrior, LogitSet
from service.catalog import BUILT_IN, TRAINING, Catalog, Plan, State, prior_in_order
from service.changes import check_name, prior_row
from service.errors import InvalidRequest
from service.store.artifacts import digest_of
from service.store.database import now
from service.store.tables import CalibrationRow, ChangeRow, PriorRow, Row

Progress = Callable[[float], None]
_out_of_fold = OutOfFold()  # of this process: a target uploaded after another needs no fit
Content = dict[str, Any]
Measured = dict[tuple[object, ...], tuple[Deployment, Content]]  # what became of a live state


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A class-frequency file as it came, and what is to be done with it."""

    data: bytes
    role: Role
    zeros: Zeros = "error"
    missing: Missing = "error"
    format: Format | None = None
    cap: float | None = None
    name: str | None = None

    @property
    def prior_name(self) -> str:
        """The given name, or one that follows from the content and from how it is to be read."""
        options = (
            "" if self.zeros == "error" else f"-{self.zeros}",
            "" if self.missing == "error" else f"-missing-{self.missing}",
            "" if self.format is None else f"-{self.format}",
            "" if self.cap is None else f"-cap-{self.cap:g}",
        )
        return self.name or f"target-{digest_of(self.data)[:12]}" + "".join(options)


def check_upload(*, role: Role, cap: float | None, name: str | None) -> None:
    """Raises: InvalidRequest for options that do not go with the role, before anything is read."""
    if cap is not None and role == "training":
        raise InvalidRequest("a cap bounds what a target prior does; leave `cap` out with role=training.")
    if name is not None and role == "training":
        raise InvalidRequest("only a target prior has a name; leave `name` out with role=training.")
    if name is not None:
        check_name(name, "prior", BUILT_IN)


def apply_frequencies(
    catalog: Catalog, head: ChangeRow, what: Upload, progress: Progress, done: Measured
) -> tuple[Plan, Content]:
    """A class-frequency file on the newest state of a model.

    Args: done, of this job: when another change came in between that left what is live as it is, nothing is fitted
        again.
    Raises: FrequencyFileError, and whatever the refit raises.
    """
    state = catalog.state(head)
    manifest = Manifest.from_json(state.version.manifest)
    before = deployment_of(state)
    frequencies = read_frequencies(
        what.data, manifest.class_names, role=what.role, zeros=what.zeros, missing=what.missing, format=what.format
    )

    def measured() -> tuple[Deployment, Content]:
        labelled = catalog.calibration_set(state.calibration)
        progress(0.1)
        if what.role == "target":
            after = with_target(before, frequencies, cap=what.cap)
        else:
            after = with_training_counts(before, frequencies, labelled, manifest.row_norms)
            if head.prior == TRAINING:
                after = replace(after, prior=after.ledger.training_prior)
        progress(0.5)
        return after, _report(manifest, before, after, labelled)

    after, report = _once(done, state, measured)
    progress(0.9)
    digest = digest_of(what.data)
    warnings = [*frequencies.warnings, *report["warnings"]]
    rows: tuple[Row, ...]
    if what.role == "target":
        prior, replaced = _edition(catalog, head, what, after.prior, manifest)
        rows = (prior,) if replaced is not None else ()
        new_state, action = replace(state, prior=prior), f"uploaded target prior {prior.name}"
        if replaced:
            undone = "gives the name its former meaning back" if state.prior_name == prior.name else "leaves it so"
            warnings.append(f"{replaced} An undo {undone}.")
    else:
        row = next_calibration(catalog, state, after, digest, state.calibration.calibration_set)
        rows = (row,)
        new_state, action = replace(state, calibration=row), f"uploaded training counts, calibration {row.id}"
    report = report | {"warnings": warnings}
    plan = Plan(
        action=action,
        state=new_state,
        undoes_to=head.revision,
        rows=rows,
        file_digest=digest,
        report=report,
    )
    return plan, {"role": what.role, **_reading(frequencies), **report}


def apply_calibration_set(
    catalog: Catalog,
    head: ChangeRow,
    labelled: LogitSet,
    stored: str,
    file_digest: str,
    progress: Progress,
    done: Measured,
) -> tuple[Plan, Content]:
    """Labelled examples in place of the calibration set of the live version; the method is chosen anew by them.

    Args: stored, the digest of the set as an artifact; file_digest, of what was uploaded; done, as above.
    Raises: NotEnoughData, FitFailed, ShapeMismatch.
    """
    state = catalog.state(head)
    manifest = Manifest.from_json(state.version.manifest)
    before = deployment_of(state)

    def measured() -> tuple[Deployment, Content]:
        ledger = before.ledger.measured_anew(labelled) if before.ledger.source == "measured" else before.ledger
        calibration = choose(labelled, ledger, manifest.row_norms).calibration
        after = replace(before, ledger=ledger, calibration=calibration)
        progress(0.5)
        return after, _report(manifest, before, after, labelled)

    after, report = _once(done, state, measured)
    row = next_calibration(catalog, state, after, file_digest, stored)
    progress(0.9)
    plan = Plan(
        action=f"uploaded a calibration set of {labelled.labels.size} examples, calibration {row.id}",
        state=replace(state, calibration=row),
        undoes_to=head.revision,
        rows=(row,),
        file_digest=file_digest,
        report=report,
    )
    return plan, {"items": labelled.labels.size, "drawn": labelled.drawn, **report}


def _once(
    done: Measured, state: State, measured: Callable[[], tuple[Deployment, Content]]
) -> tuple[Deployment, Content]:
    edition = state.prior.edition if isinstance(state.prior, PriorRow) else None
    live = (state.version.number, state.calibration.number, state.prior_name, edition)
    if live not in done:
        done[live] = measured()
    return done[live]


def deployment_of(state: State) -> Deployment:
    """All that turns raw logits into scores in this state."""
    names = tuple(state.version.manifest["class_names"])
    ledger = ledger_from_json(state.calibration.ledger)
    if isinstance(state.prior, PriorRow):
        prior = prior_in_order(state.prior, names)
    else:
        prior = ledger.training_prior if state.prior == TRAINING else ClassPrior.uniform(len(names))
    return Deployment(ledger=ledger, calibration=calibration_from_json(state.calibration.calibration), prior=prior)


def next_calibration(
    catalog: Catalog, state: State, after: Deployment, file_digest: str, calibration_set: str | None
) -> CalibrationRow:
    model = state.version.model
    return CalibrationRow(
        model=model,
        number=catalog.database.last_calibration(model) + 1,
        version=state.version.number,
        method=after.calibration.method,
        calibration=calibration_to_json(after.calibration),
        ledger=ledger_to_json(after.ledger),
        file_digest=file_digest,
        created_at=now(),
        calibration_set=calibration_set,
    )


def _report(manifest: Manifest, before: Deployment, after: Deployment, labelled: LogitSet | None) -> Content:
    return compare(
        before,
        after,
        class_names=manifest.class_names,
        calibration_set=labelled,
        row_norms=manifest.row_norms,
        measure=_out_of_fold,
    )


def _edition(
    catalog: Catalog, head: ChangeRow, what: Upload, prior: ClassPrior, manifest: Manifest
) -> tuple[PriorRow, str | None]:
    """The stored prior with these numbers under this name, or a new edition with a remark on what it replaces."""
    name = what.prior_name
    row = prior_row(catalog, head.model, name, prior, manifest.class_names, file_digest=digest_of(what.data))
    known = next((each for each in catalog.database.priors(head.model) if each.name == name), None)
    if known is not None and known.probs == row.probs:
        return known, None
    return row, "" if known is None else f"the name {name!r} meant other numbers before; it is edition {row.edition}."


def _reading(frequencies: Frequencies) -> Content:
    """How the file was read: `format_detected` for people, `reading` for programs."""
    return {
        "format_detected": frequencies.format_detected,
        "kind": frequencies.kind,
        "reading": {
            "format": frequencies.format,
            "matched_by": frequencies.matched_by,
            "header": frequencies.header,
            "delimiter": frequencies.delimiter,
            "classes": frequencies.values.size,
            "total": float(frequencies.values.sum()),
        },
    }
