"""How states, calibrations, priors, jobs and changes are written in answers."""

from __future__ import annotations

from typing import Any

from service.catalog import State
from service.store.tables import CalibrationRow, ChangeRow, JobRow, PriorRow, VersionRow


def active(state: State) -> dict[str, Any]:
    calibration = {"id": state.calibration.id, "method": state.calibration.method}
    return {"version": state.version.id, "calibration": calibration, "prior": state.prior_name}


def changed(state: State, change: ChangeRow) -> dict[str, Any]:
    """The answer to every change: what is live now, and how to go back."""
    return {
        "model": change.model,
        "revision": change.revision,
        "action": change.action,
        "active": active(state),
        "undo": undo_link(change),
    }


def undo_link(change: ChangeRow) -> dict[str, str] | None:
    """How to take back this change; None where an undo would take back an earlier one, or none."""
    if change.undoes_to is None or change.undoes_to != change.revision - 1:
        return None
    return {"method": "POST", "href": f"/v1/models/{change.model}/undo?revision={change.revision}"}


def version(row: VersionRow, *, live: bool, aliases: list[str]) -> dict[str, Any]:
    return {"version": row.id, "created_at": row.created_at, "active": live, "aliases": aliases}


def calibration(row: CalibrationRow, *, live: bool) -> dict[str, Any]:
    return {
        "id": row.id,
        "version": str(row.version),
        "method": row.method,
        "file_digest": row.file_digest,
        "created_at": row.created_at,
        "active": live,
    }


def prior(row: PriorRow, *, live: bool) -> dict[str, Any]:
    return {
        "name": row.name,
        "edition": row.edition,
        "probs": row.probs,
        "file_digest": row.file_digest,
        "created_at": row.created_at,
        "active": live,
    }


def history(row: ChangeRow) -> dict[str, Any]:
    """One change, with the figures before and after it, where they were measured."""
    return {
        "revision": row.revision,
        "action": row.action,
        "version": str(row.version),
        "calibration": f"c{row.calibration}",
        "prior": row.prior,
        "prior_edition": row.prior_edition,
        "undoes_to": row.undoes_to,
        "created_at": row.created_at,
        "actor": row.actor,
        "file_digest": row.file_digest,
        "metrics": row.metrics,
    }


def job(row: JobRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "kind": row.kind,
        "model": row.target or (row.result or {}).get("model"),
        "status": row.status,
        "progress": row.progress,
        "attempts": row.attempts,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "actor": row.actor,
        "result": row.result,
        "problem": row.problem,
    }
