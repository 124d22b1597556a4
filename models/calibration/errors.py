"""One family of errors for everything that can be wrong with data or a request; the service maps it to HTTP codes."""

from collections.abc import Sequence
from dataclasses import dataclass


class CalibrationError(ValueError):
    """Base of the family. The message says the rule, what came, and the way out."""


class ShapeMismatch(CalibrationError):
    """An array does not have the shape that its partner asks for."""


class InvalidLogits(CalibrationError):
    """Logits are not finite numbers that fit float32."""


class InvalidLabels(CalibrationError):
    """Labels are not integers in [0, C)."""


class InvalidPrior(CalibrationError):
    """Numbers that are not a class prior: wrong length, negative, not finite, or all zero."""


class InvalidCalibration(CalibrationError):
    """Parameters that cannot be a calibration."""


class UnknownClass(CalibrationError):
    """A class name that the model does not have."""


class EmptyClass(CalibrationError):
    """A class without a single training example: the model has no evidence for it."""


class LeakedSplit(CalibrationError):
    """A fit that needs held-out data was given data that the network was trained on."""


class NotEnoughData(CalibrationError):
    """Too few labelled examples for what was asked."""


class InvalidCalibrationSet(CalibrationError):
    """An uploaded file of labelled examples that was refused, with what is wrong in it."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count} in the file of labelled examples, nothing applied: {'; '.join(self.problems)}")


class FitFailed(CalibrationError):
    """The optimiser stopped without reaching a minimum; the message carries its reason."""


class UnknownTrainingRule(CalibrationError):
    """No rule gives the implied prior from class counts for a classifier trained this way."""


class InvalidManifest(CalibrationError):
    """A manifest that does not describe a classifier completely and consistently."""


class InvalidImage(CalibrationError):
    """Bytes that are not one still image of an accepted kind."""


class ImageTooLarge(CalibrationError):
    """An image with more pixels than the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProblem:
    """One thing wrong in a frequency file; `line` counts from 1 and is None where the whole file is meant."""

    line: int | None
    message: str

    def __str__(self) -> str:
        return self.message if self.line is None else f"line {self.line}: {self.message}"


class FrequencyFileError(CalibrationError):
    """A class-frequency file that was refused, with everything that is wrong in it."""

    def __init__(self, problems: Sequence[FileProblem]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        listed = "; ".join(str(problem) for problem in self.problems)
        super().__init__(f"{count} in the class-frequency file, nothing applied: {listed}")
