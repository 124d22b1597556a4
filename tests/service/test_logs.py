"""A line a record, whatever is in it: for programs as JSON, for people as text; and nothing of a secret."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.service.processes import Process, eventually

ROOT = Path(__file__).parents[2]
BEGINNING = "import logging, sys, warnings; from service import logs; logs.configure(sys.argv[1])\n"
FORGED = "2026-01-01 00:00:00,000 ERROR service: forged"


def written(kind, code, **options):
    """What a process that logs in this format writes to standard error."""
    command = [sys.executable, "-c", BEGINNING + code, kind]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True, **options).stderr


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_record_is_one_object_with_its_time_level_logger_and_message():
    (record,) = records(written("json", "logging.getLogger('service.x').info('%d models', 3)"))
    assert {name: record[name] for name in ("level", "logger", "message")} == {
        "level": "INFO",
        "logger": "service.x",
        "message": "3 models",
    }
    assert list(record) == ["time", "level", "logger", "message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", record["time"])
    assert abs(datetime.fromisoformat(record["time"]) - datetime.now(UTC)) < timedelta(minutes=5)


def test_a_record_names_the_request_that_it_belongs_to_and_no_other():
    code = """
from contextvars import copy_context
log = logging.getLogger("service")
def serve(name):
    logs.request_id.set(name)
    log.info("inside")
copy_context().run(serve, "r1")
copy_context().run(serve, "r2")
log.info("outside")
"""
    assert [each.get("request_id") for each in records(written("json", code))] == ["r1", "r2", None]


def test_an_exception_is_text_in_the_same_object():
    code = """
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("service").exception("it failed")
"""
    (record,) = records(written("json", code))
    assert record["message"] == "it failed"
    assert record["exception"].startswith("Traceback")
    assert record["exception"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize("text", [f"a\n{FORGED}", f"a\r{FORGED}", f"a\x85{FORGED}", f"a\u2028{FORGED}", "a\x1b[2J"])
@pytest.mark.parametrize("kind", ["json", "text"])
def test_what_a_client_sent_begins_no_line_and_reaches_no_terminal(kind, text):
    lines = written(kind, f"logging.getLogger('service').info('got %s', {text!r})").splitlines()
    assert len(lines) == 1
    assert lines[0].isprintable()
    if kind == "json":
        assert json.loads(lines[0])["message"] == f"got {text}"


def test_an_exception_in_text_begins_no_line_of_its_own():
    code = f"""
try:
    raise ValueError("a\\n{FORGED}")
except ValueError:
    logging.getLogger("service").exception("it failed")
"""
    first, *rest = written("text", code).splitlines()
    assert first.endswith(" ERROR service: it failed")
    assert f"    {FORGED}" in rest
    assert all(line.startswith("    ") for line in rest)


def test_text_is_the_time_the_level_the_logger_and_the_message():
    line = written("text", "logging.getLogger('service').warning('slow')")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING service: slow\n", line)


def test_a_name_that_is_no_text_is_written_and_not_lost():
    (record,) = records(written("json", r"logging.getLogger('service').info('file %s', 'caf\udce9')"))
    assert record["message"] == "file caf\udce9"


def test_what_was_given_as_extra_is_in_the_object_but_replaces_nothing():
    code = "logging.getLogger('service').info('done', extra={'model': 'pets', 'time': 'never', 'path': logs.re})"
    (record,) = records(written("json", code))
    assert record["model"] == "pets"
    assert record["time"] != "never"
    assert record["path"].startswith("<module 're'")  # what JSON does not know is told as text


def test_other_libraries_are_heard_from_warnings_on_and_warnings_are_records():
    code = """
for name in ("httpx", "uvicorn.error", "service.follow"):
    logging.getLogger(name).info("info")
    logging.getLogger(name).warning("warning")
warnings.warn("old", stacklevel=1)
"""
    found = [(each["logger"], each["level"]) for each in records(written("json", code))]
    assert found[:5] == [
        ("httpx", "WARNING"),
        ("uvicorn.error", "INFO"),
        ("uvicorn.error", "WARNING"),
        ("service.follow", "INFO"),
        ("service.follow", "WARNING"),
    ]
    assert found[5:] == [("py.warnings", "WARNING")]


def test_auto_is_text_on_a_terminal_and_json_elsewhere():
    code = "logging.getLogger('service').info('here')"
    assert records(written("auto", code))[0]["message"] == "here"
    ours, theirs = os.openpty()
    try:
        subprocess.run([sys.executable, "-c", BEGINNING + code, "auto"], cwd=ROOT, stderr=theirs, check=True)
        assert os.read(ours, 1000).endswith(b" INFO service: here\r\n")
    finally:
        os.close(ours)
        os.close(theirs)


def test_an_answer_is_a_line_with_what_was_asked_and_by_which_key():
    code = "logs.request_line('POST', '/v1/models/pets/undo', 200, 0.0123456789, model='pets', key='admin')"
    (record,) = records(written("json", code))
    del record["time"]
    assert record == {
        "level": "INFO",
        "logger": "service.requests",
        "message": "POST /v1/models/pets/undo 200",
        "method": "POST",
        "path": "/v1/models/pets/undo",
        "status": 200,
        "seconds": 0.012346,
        "model": "pets",
        "key": "admin",
    }


def test_an_answer_tells_no_query_no_empty_field_and_no_endless_path():
    code = """
logs.request_line("GET", "/v1/models?key=secret", 503, 0.1)
logs.request_line("GET", "/" + "x" * 60000, 404, 0.1)
"""
    text = written("json", code)
    failed, long = records(text)
    assert "secret" not in text
    assert failed["path"] == "/v1/models"
    assert failed["level"] == "WARNING"
    assert not {"model", "key", "request_id"} & set(failed)
    assert len(text.splitlines()[1]) < 1000
    assert long["path"] == "/" + "x" * 199


def test_a_server_and_its_worker_write_nothing_else_than_records(tmp_path):
    process = Process(tmp_path, log_format="json")
    try:
        with closing(sqlite3.connect(tmp_path / "state" / "equipoise.db")) as database:
            database.execute("DROP TABLE jobs")  # now the worker has something to say
        eventually(lambda: "service.worker" in process.log, seconds=60)
    finally:
        process.stop()
    loggers = {each["logger"] for each in records(process.log)}
    assert {"uvicorn.error", "service.worker"} <= loggers
