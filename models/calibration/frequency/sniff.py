"""From bytes to the reader of their format: by content, or by the name that the sender gives."""

import io
import re
from collections.abc import Sequence
from typing import BinaryIO, get_args

from models.calibration.frequency.documents import read_coco, read_json
from models.calibration.frequency.entries import EXAMPLE_FORMATS, Format, Parsed, normal, refuse
from models.calibration.frequency.lists import Layout, layout_for, layout_of, read_list
from models.calibration.frequency.tables import delimiter_of, read_numbers, read_table
from models.calibration.frequency.values import looks_numeric

MAX_BYTES = 1 << 20
MAX_LIST_BYTES = 64 << 20  # formats that list examples
FORMATS: tuple[Format, ...] = get_args(Format)

_HEAD = 1 << 16
_COCO = re.compile(r'"(images|annotations|categories)"\s*:\s*\[')
_NUMBER_LIKE = re.compile(r"[+-]?(\.?[0-9]|nan|inf)", re.IGNORECASE)
_BINARY = {
    b"\xff\xfe": "the file is UTF-16; class-frequency files are UTF-8. Save it as UTF-8 (CSV UTF-8 in Excel).",
    b"\xfe\xff": "the file is UTF-16; class-frequency files are UTF-8. Save it as UTF-8 (CSV UTF-8 in Excel).",
    b"PK\x03\x04": "the file is a zip archive or an Excel workbook. Save the sheet as CSV (CSV UTF-8 in Excel).",
    b"\x1f\x8b": "the file is compressed with gzip. Unpack it first.",
}


def parse(source: BinaryIO, class_names: Sequence[str], format: Format | None) -> Parsed:
    """Read the entries of a seekable file from its start.

    Raises: FrequencyFileError where nothing can be read at all; smaller problems are listed in the answer.
    """
    size = source.seek(0, io.SEEK_END)
    source.seek(0)
    head = source.read(_HEAD)
    source.seek(0)
    _check_text(head)
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if not text:
        refuse("the file is empty. Send lines of class,count or a JSON object of class names to counts.")
    first_line = re.split(r"[\r\n]", text, maxsplit=1)[0].strip()
    layout = _layout(text, first_line, class_names, format)
    detected = format or _detect(text, first_line, layout)
    _check_size(size, detected)
    if layout is not None:
        return read_list(source, layout, len(class_names))
    readers = {"csv": read_table, "numbers": read_numbers, "json": read_json, "coco": read_coco}
    return readers[detected](_decode(source.read()))


def _check_text(head: bytes) -> None:
    for magic, message in _BINARY.items():
        if head.startswith(magic):
            refuse(message)
    if b"\0" in head:
        refuse("the file holds NUL characters: it is not UTF-8 text. Send CSV or JSON, saved as UTF-8.")


def _layout(text: str, first_line: str, class_names: Sequence[str], format: Format | None) -> Layout | None:
    if format == "split-list" or format == "folder-listing":
        return layout_for(format, first_line)
    if format is not None or text[0] in "{[" or _begins_with_a_class(first_line, class_names):
        return None
    return layout_of(first_line)


def _begins_with_a_class(line: str, class_names: Sequence[str]) -> bool:
    """A line of a table without header, even where classes are called like image files."""
    delimiter = delimiter_of(line)
    if delimiter is None:
        return False
    name, value = line.rsplit(delimiter, 1)
    return looks_numeric(value) and normal(name).strip('"') in map(normal, class_names)


def _detect(text: str, first_line: str, layout: Layout | None) -> Format:
    if layout is not None:
        return layout.format
    if text[0] in "{[":
        return "coco" if text[0] == "{" and _COCO.search(text) else "json"
    alone = delimiter_of(first_line) is None and _NUMBER_LIKE.match(first_line) is not None
    return "numbers" if alone else "csv"


def _check_size(size: int, detected: Format) -> None:
    limit = MAX_LIST_BYTES if detected in EXAMPLE_FORMATS else MAX_BYTES
    if size <= limit:
        return
    advice = "Send counts, not examples."
    if limit == MAX_BYTES:
        advice += f" Lists of examples may have {MAX_LIST_BYTES:,}; name them with format=split-list or format=coco."
    refuse(f"a class-frequency file in the format {detected} has at most {limit:,} bytes; got {size:,}. {advice}")


def _decode(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(f"the file is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}. Save it as UTF-8.")
    if "\0" in text:
        refuse("the file holds NUL characters: it is not UTF-8 text. Send CSV or JSON, saved as UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
