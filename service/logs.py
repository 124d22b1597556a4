"""What the service writes to standard error: one line a record, as JSON for programs or as text for people."""

from __future__ import annotations

import json
import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

LogFormat: TypeAlias = Literal["auto", "json", "text"]

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LONGEST_PATH = 200  # characters of it in a line; a client chooses how long it is
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
OWN = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"})  # the last is uvicorn's

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
requests = logging.getLogger("service.requests")


def configure(kind: LogFormat) -> None:
    """Send all records of this process to standard error. `auto` is text on a terminal and JSON elsewhere.

    Records of other libraries are written from WARNING on, those of the service and of uvicorn from INFO on.
    """
    as_text = kind == "text" or (kind == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextLines(TEXT_FORMAT) if as_text else JsonLines())
    logging.basicConfig(handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in ("service", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)


def request_line(method: str, path: str, status: int, seconds: float, *, model: str = "", key: str = "") -> None:
    """Log an answer, without the query, which may hold secrets. Args: key, the name of the key and never the key."""
    shown = path.partition("?")[0][:LONGEST_PATH]
    told = {"method": method, "path": shown, "status": status, "seconds": round(seconds, 6)}
    told |= {name: value for name, value in (("model", model[:LONGEST_PATH]), ("key", key)) if value}
    level = logging.WARNING if status >= 500 else logging.INFO
    requests.log(level, "%s %s %d", method, shown, status, extra=told)


class JsonLines(logging.Formatter):
    """One JSON object a record: what every record has, the request it belongs to, and what was given as `extra`.

    The standard library writes it and not orjson, which refuses text with the surrogates of an undecodable file name.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        request = request_id.get()
        if request is not None:
            line["request_id"] = request
        line |= {name: value for name, value in vars(record).items() if name not in OWN and name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """A line a record, as `TEXT_FORMAT` says. What a client sent cannot begin a line: control characters are written as
    escapes, and the lines of an exception are indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(f"    {_escaped(line)}" for line in super().formatException(ei).split("\n"))


def _escaped(text: str) -> str:
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
