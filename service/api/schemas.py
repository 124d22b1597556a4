"""The answers as the OpenAPI page describes them; the endpoints write them without going through these classes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
ByClass = dict[str, Probability]


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow")


class Link(Answer):
    method: str
    href: Annotated[str, Field(examples=["/v1/models/pets/undo?revision=3"])]


class CalibrationName(Answer):
    id: Annotated[str | None, Field(examples=["c2"], description="None in a dry run that would make a new one.")]
    method: Annotated[str, Field(examples=["marc"])]


class Active(Answer):
    """What is live of a model."""

    version: Annotated[str, Field(examples=["1"])]
    calibration: CalibrationName
    prior: Annotated[str, Field(examples=["uniform"])]


class ChangedAnswer(Answer):
    """What is live after a change, and how to go back."""

    model: Annotated[str, Field(examples=["pets"])]
    revision: Annotated[int, Field(ge=1)]
    action: Annotated[str, Field(examples=["activated prior summer"])]
    active: Active
    undo: Link | None


class ReportAnswer(Answer):
    """What an upload does, before and after, measured where there is a calibration set."""

    model: Annotated[str, Field(examples=["pets"])]
    revision: Annotated[int, Field(ge=1)]
    dry_run: bool
    prior: Annotated[dict[str, Any], Field(description="Entropy, distances, imbalance of the target prior.")]
    classes: Annotated[list[dict[str, Any]], Field(description="A row a class: priors before and after, shift (nats).")]
    raised_most: list[dict[str, Any]]
    lowered_most: list[dict[str, Any]]
    metrics: Annotated[
        dict[str, Any] | None,
        Field(description="Before and after, with intervals and the sample; None without a calibration set."),
    ]
    flips: Annotated[dict[str, Any] | None, Field(description="Share of decisions that change, and the commonest.")]
    warnings: list[str]
    active: Active
    undo: Link | None


class FrequenciesAnswer(ReportAnswer):
    role: Literal["target", "training"]
    format_detected: Annotated[str, Field(description="How the file was read, for people.")]
    kind: str
    reading: Annotated[dict[str, Any], Field(description="How the file was read, for programs.")]


class CalibrationSetAnswer(ReportAnswer):
    items: Annotated[int, Field(ge=2, description="Labelled examples.")]
    drawn: str


class RegisteredAnswer(Answer):
    model: Annotated[str, Field(examples=["pets"])]
    version: Annotated[str, Field(examples=["1"])]
    known: Annotated[bool, Field(description="The bundle was registered before; nothing was changed.")]
    revision: Annotated[int, Field(ge=1)]
    warnings: list[str]
    active: Active
    undo: Link | None


class VersionAnswer(Answer):
    version: Annotated[str, Field(examples=["1"])]
    created_at: str
    active: bool
    aliases: list[str]


class UsedPrior(Answer):
    """The class law that the scores are adjusted to."""

    name: Annotated[
        str, Field(examples=["uniform"], description="`inline` and `kappa` where the request gave the law.")
    ]
    edition: Annotated[int | None, Field(ge=1, description="Of a stored prior: counts what the name has meant.")] = None
    kappa: float | None = None


class ClassScore(Answer):
    class_: Annotated[str, Field(alias="class", examples=["dog"])]
    score: Probability


class Explanation(Answer):
    """The way from the logits to the scores, one number a class in class order."""

    raw: Annotated[list[Probability], Field(description="Softmax of the logits as they came.")]
    debiased: Annotated[list[Probability], Field(description="With the implied prior taken out.")]
    adjusted: Annotated[list[Probability], Field(description="With the target prior put in: the scores.")]
    log_prior_shift: Annotated[
        list[float | None], Field(description="Log target minus log implied prior; None for an impossible class.")
    ]


class ScoreResult(ClassScore):
    """The best class of one image or row; `scores` of all in class order, or `top` where `top_k` asks for it."""

    scores: list[Probability] | None = None
    top: list[ClassScore] | None = None
    explain: Explanation | None = None


class ScoresAnswer(Answer):
    model: Annotated[str, Field(examples=["pets"])]
    version: Annotated[str, Field(examples=["1"])]
    calibration: CalibrationName
    prior: UsedPrior
    results: Annotated[list[ScoreResult], Field(min_length=1, description="One an image or row, in their order.")]


class ModelBrief(Answer):
    name: Annotated[str, Field(examples=["pets"])]
    revision: Annotated[int, Field(ge=1)]
    active: Active


class ModelsAnswer(Answer):
    models: list[ModelBrief]


class ModelAnswer(ModelBrief):
    class_names: list[str]
    class_counts: Annotated[list[int], Field(description="Training examples a class.")]
    input: Annotated[dict[str, Any] | None, Field(description="Height and width; None for a model that takes logits.")]
    trained_with: str
    implied_prior: Annotated[dict[str, Any], Field(description="Of the raw logits: its source and its numbers.")]
    calibration_set: Annotated[bool, Field(description="Whether there are labelled examples to refit from.")]
    warnings: Annotated[list[str], Field(description="What the fit of the active calibration warned of.")]
    versions: list[VersionAnswer]


class AliasesAnswer(Answer):
    aliases: Annotated[dict[str, str], Field(examples=[{"production": "1", "candidate": "2"}])]


class CalibrationBrief(Answer):
    id: Annotated[str, Field(examples=["c2"])]
    version: str
    method: str
    file_digest: Annotated[str | None, Field(description="SHA-256 of the upload that led to it.")]
    created_at: str
    active: bool


class CalibrationsAnswer(Answer):
    calibrations: list[CalibrationBrief]


class CalibrationAnswer(CalibrationBrief):
    calibration: Annotated[dict[str, Any], Field(description="Scale, offset and implied prior, one number a class.")]
    ledger: Annotated[dict[str, Any], Field(description="How the classifier was trained, and what that implies.")]
    report: Annotated[dict[str, Any] | None, Field(description="Before and after, of the upload that led to it.")]


class ClassShift(Answer):
    """A class, and how far its weight moves."""

    class_: Annotated[str, Field(alias="class", examples=["dog"])]
    shift_nats: Annotated[float | None, Field(description="Relative to the average class; None where infinite.")]


class ClassDifference(Answer):
    class_: Annotated[str, Field(alias="class", examples=["dog"])]
    scale_ratio: float | None
    offset_nats: float | None
    log_implied_prior_nats: float | None
    log_weight_nats: float | None
    training_count_a: int
    training_count_b: int


class DifferenceAnswer(Answer):
    """From one calibration to another; nats are relative to the average class."""

    from_: Annotated[str, Field(alias="from", examples=["c2"])]
    to: Annotated[str, Field(examples=["c1"])]
    method_a: str
    method_b: str
    temperature_ratio: Annotated[float | None, Field(description="None where one scales its classes differently.")]
    mean_absolute_change_nats: Annotated[float, Field(ge=0)]
    raised_most: list[ClassShift]
    lowered_most: list[ClassShift]
    classes: list[ClassDifference]
    decisions: Annotated[
        dict[str, Any] | None,
        Field(description="On how many stored examples the two decide differently; None without a set of both."),
    ]


class PriorAnswer(Answer):
    name: Annotated[str, Field(examples=["summer"])]
    edition: Annotated[int | None, Field(description="Counts what the name has meant; None for a built-in prior.")]
    probs: ByClass
    file_digest: str | None
    created_at: str | None
    active: bool


class PriorsAnswer(Answer):
    active: str
    priors: list[PriorAnswer]


class HistoryEntry(Answer):
    revision: Annotated[int, Field(ge=1)]
    action: str
    version: str
    calibration: str
    prior: str
    prior_edition: int | None
    undoes_to: int | None
    created_at: str
    actor: Annotated[str | None, Field(description="Who it was: the client's From header, the name of the key.")]
    file_digest: Annotated[str | None, Field(description="SHA-256 of the uploaded file, which is kept.")]
    metrics: Annotated[dict[str, Any] | None, Field(description="Before and after, where they were measured.")]


class HistoryAnswer(Answer):
    changes: list[HistoryEntry]


class ChangeAnswer(HistoryEntry):
    report: dict[str, Any] | None


class JobAnswer(Answer):
    id: Annotated[str, Field(examples=["j7"])]
    kind: Literal["class-frequencies", "calibration-set", "register", "import"]
    model: str | None
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    progress: Probability
    attempts: Annotated[int, Field(ge=0, description="Workers that have begun it.")]
    created_at: str
    started_at: str | None
    finished_at: str | None
    actor: str | None
    result: Annotated[dict[str, Any] | None, Field(description="The answer, when it is done.")]
    problem: Annotated[dict[str, Any] | None, Field(description="The problem document, when it failed.")]


class JobsAnswer(Answer):
    jobs: list[JobAnswer]


class LiveAnswer(Answer):
    live: Literal[True]


class ReadyAnswer(Answer):
    ready: Literal[True]
    degraded: Annotated[list[str], Field(description="What works only in part; empty when all is well.")]
