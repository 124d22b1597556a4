"""The file with the class names of a model that comes without a manifest."""

from models.calibration.errors import InvalidManifest
from models.calibration.manifest import check_class_names


def read_class_names(data: bytes) -> tuple[str, ...]:
    """The names of a text with one class a line, in the model's order, trimmed; empty lines are passed over.

    Raises: InvalidManifest, telling what a line should be.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidManifest(
            f"the file of class names is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}. Save it as UTF-8."
        ) from error
    if "\0" in text:
        raise InvalidManifest("the file of class names holds NUL characters: it is not UTF-8 text. Save it as UTF-8.")
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) == 1 and "," in names[0]:
        raise InvalidManifest(f"the file of class names has one name a line; got one line, {names[0][:80]!r}.")
    check_class_names(names)
    return names
