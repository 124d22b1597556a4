"""The jobs by their kind: what a worker does for each; a job ends in the same transaction as the change it makes."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from sqlalchemy.orm import Session

from models.calibration.frequencies import read_frequencies
from models.calibration.manifest import Manifest
from models.calibration.packing import pack_logits
from models.calibration.types import FloatArray, LogitSet
from models.onnx_graph.answers import OutputKind, as_logits
from service import recalibration
from service.answers import active, undo_link
from service.bundle import Bundle, bundle_of, read_bundle
from service.catalog import AlreadyRegistered, Catalog, Plan, expect_revision
from service.class_names import read_class_names
from service.errors import ChangedSince
from service.follow import Follower
from service.labelled import read_labelled
from service.recalibration import Content, Measured, Progress, Upload
from service.runtime import scoring
from service.settings import Settings
from service.store.database import Database
from service.store.fetch import fetch
from service.store.jobs import Jobs
from service.store.keeping import UPLOAD_FOLDER
from service.store.tables import ChangeRow, JobRow

IMPORT_FILES = ("classes", "counts", "logits", "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A job that this process holds, and what it takes to do it."""

    job: JobRow
    jobs: Jobs
    catalog: Catalog
    follower: Follower
    settings: Settings
    progress: Progress

    @property
    def database(self) -> Database:
        return self.catalog.database

    def input(self) -> Path:
        assert self.job.input_digest is not None  # every kind but a registration by URL has one
        return self.catalog.artifacts.path(self.job.input_digest)


def perform(task: Task) -> None:
    """Do a job to its end. Raises: LostLease, and whatever the job refuses; then nothing has changed."""
    KINDS[task.job.kind](task)


def _class_frequencies(task: Task) -> None:
    options = dict(task.job.options)
    dry_run = options.pop("dry_run")
    what = Upload(data=task.input().read_bytes(), **_without(options, "revisions"))
    done: Measured = {}

    def plan(head: ChangeRow) -> tuple[Plan, Content]:
        return recalibration.apply_frequencies(task.catalog, head, what, task.progress, done)

    _apply(task, plan, dry_run=dry_run)


def _calibration_set(task: Task) -> None:
    options = task.job.options
    head = task.database.newest_change(task.job.target)
    labelled = _labelled(task, head, str(options["drawn"]), options["output_kind"])
    stored = task.catalog.keeper.put(pack_logits(labelled))
    digest = task.job.input_digest
    assert digest is not None  # the upload
    version = head.version
    done: Measured = {}

    def plan(head: ChangeRow) -> tuple[Plan, Content]:
        if head.version != version:  # another network gives other logits
            raise ChangedSince(
                f"version {head.version} of model {head.model!r} went live in the meantime. Send the examples again.",
                revision=head.revision,
            )
        return recalibration.apply_calibration_set(task.catalog, head, labelled, stored, digest, task.progress, done)

    _apply(task, plan, dry_run=bool(options["dry_run"]))


def _labelled(task: Task, head: ChangeRow, drawn: str, kind: OutputKind) -> LogitSet:
    live = task.follower.build(task.catalog.state(head), head.revision, "")

    def logits_of(files: list[bytes]) -> FloatArray:
        return scoring.logits_of_images(live, files, max_pixels=task.settings.max_pixels)

    with task.input().open("rb") as file:
        return read_labelled(
            file,
            class_names=live.class_names,
            logits_of=None if live.runner is None else logits_of,
            drawn=drawn,
            as_logits=lambda rows: as_logits(rows, "the labelled examples", kind),
            progress=lambda share: task.progress(0.4 * share),
        )


def _apply(task: Task, plan: Callable[[ChangeRow], tuple[Plan, Content]], *, dry_run: bool) -> None:
    """Plan and commit, or only plan; the answer for the client becomes the job's result."""
    model = task.job.target
    check = expect_revision(model, task.job.options["revisions"])
    contents: list[Content] = []  # the last one belongs to what is committed

    def planned(head: ChangeRow) -> Plan:
        made, content = plan(head)
        contents.append(content)
        return made

    if dry_run:
        head = task.database.newest_change(model)
        check(head)
        made = planned(head)
        result = _result(made, contents[-1], model=model, revision=head.revision, dry_run=True, undo=None)
        with task.database.writing() as session:
            task.jobs.finish(session, task.job, result=result, revision=None)
        return

    def finish(session: Session, made: Plan, change: ChangeRow) -> None:
        result = _result(
            made, contents[-1], model=model, revision=change.revision, dry_run=False, undo=undo_link(change)
        )
        task.jobs.finish(session, task.job, result=result, revision=change.revision)

    task.catalog.change(model, planned, check=check, actor=task.job.actor, finish=finish)


def _result(plan: Plan, content: Content, **more: Any) -> Content:
    shown = active(plan.state)
    if more["dry_run"]:
        shown = shown | {"calibration": shown["calibration"] | {"id": None}} if _adds_calibration(plan) else shown
    return {**more, **content, "active": shown}


def _adds_calibration(plan: Plan) -> bool:
    return plan.state.calibration in plan.rows


def _register(task: Task) -> None:
    url = task.job.options["url"]
    if url is None:
        _enter(task, read_bundle(task.input(), "the upload"))
        return
    with tempfile.TemporaryDirectory(prefix=UPLOAD_FOLDER, dir=task.settings.state_dir) as folder:
        prefixes = task.settings.bundle_url_prefixes
        path = fetch(url, allowed=prefixes, limit=task.settings.max_upload_bytes, into=Path(folder))
        _enter(task, read_bundle(path, url))


def _import(task: Task) -> None:
    from models.onnx_graph.imported import imported  # needs onnx, which serving never loads

    options = _without(task.job.options, "activate")
    with tarfile.open(task.input(), "r:") as archive:
        files = {name: archive.extractfile(name) for name in IMPORT_FILES if name in archive.getnames()}
        classes, counts, logits, model = (files.get(name) for name in IMPORT_FILES)
        assert classes is not None  # the route asks for both
        assert counts is not None
        class_names = read_class_names(classes.read())
        frequencies = read_frequencies(counts.read(), class_names, role="training")
        labelled = None if logits is None else _given_logits(logits, class_names, options["output_kind"])
        task.progress(0.2)
        manifest, network = imported(
            None if model is None else model.read(),
            class_names=class_names,
            class_counts=frequencies.counts if frequencies.counts is not None else [],
            logits=labelled,
            **options,
        )
    task.progress(0.8)
    _enter(task, bundle_of(manifest, network, labelled))


def _given_logits(file: IO[bytes], class_names: Sequence[str], kind: OutputKind) -> LogitSet:
    turned = partial(as_logits, source="logits", kind=kind)
    return read_labelled(file, class_names=class_names, logits_of=None, drawn="given at import", as_logits=turned)


def _enter(task: Task, bundle: Bundle) -> None:
    """Register a bundle; one that is known changes nothing."""
    manifest = bundle.manifest
    finish = partial(_registered, task, manifest)
    try:
        task.catalog.register(
            bundle,
            activate=bool(task.job.options["activate"]),
            prepare=task.follower.prepare,
            actor=task.job.actor,
            finish=finish,
        )
    except AlreadyRegistered as known:
        head = task.database.newest_change(manifest.name)
        result = {
            "model": manifest.name,
            "version": str(known),
            "known": True,
            "revision": head.revision,
            "warnings": ["this bundle is a known version; nothing was changed."],
            "active": active(task.catalog.state(head)),
            "undo": None,
        }
        with task.database.writing() as session:
            task.jobs.finish(session, task.job, result=result, revision=None)


def _registered(task: Task, manifest: Manifest, session: Session, plan: Plan, change: ChangeRow) -> None:
    assert plan.version is not None  # what a registration adds
    result = {
        "model": change.model,
        "version": plan.version.id,
        "known": False,
        "revision": change.revision,
        "warnings": [str(each) for each in manifest.calibration.provenance.get("warnings", [])],
        "active": active(plan.state),
        "undo": undo_link(change),
    }
    task.jobs.finish(session, task.job, result=result, revision=change.revision)


def _without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in names}


KINDS: dict[str, Callable[[Task], None]] = {
    "class-frequencies": _class_frequencies,
    "calibration-set": _calibration_set,
    "register": _register,
    "import": _import,
}
