"""The error of this package, apart from it: a table of errors can name it without loading onnx."""

from models.calibration.errors import CalibrationError


class InvalidModel(CalibrationError):
    """An ONNX graph that is not in the standard form and cannot be brought into it, or that changes on the way."""
