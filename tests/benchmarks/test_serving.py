"""The serving benchmark with a real server: plain FastAPI on the network that computes nothing."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving import compared, failures, open_rows
from benchmarks.serving_bundles import NULL, expected_scores, image, ours, plain, write
from benchmarks.serving_servers import OURS, PEERS, PROGRAMS, CannotMeasure, Server, WrongAnswer, digest
from benchmarks.serving_window import Bare, Processes, Running
from models.calibration.manifest import MODEL_FILE
from models.calibration.types import ClassPrior
from tests import needs
from tests.service.processes import eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / NULL
    write(NULL, path)
    return path


def yardstick(name: str, program: str, bundle: Path) -> Server:
    command = [sys.executable, str(PROGRAMS / program), "{port}", f"{NULL}={bundle / MODEL_FILE}"]
    calls = {(NULL, "bytes"): plain(f"/models/{NULL}/scores", bundle, "bytes")}
    return Server(name=name, command=command, calls=calls)


@pytest.fixture(scope="module")
def server(bundle: Path) -> Server:
    return yardstick("fastapi", "plain_fastapi.py", bundle)


@pytest.fixture(scope="module")
def running(server: Server) -> Iterator[Running]:
    with Running(server) as started:
        yield started


def around(rate: float, others: float = 0.0) -> dict[str, float]:
    return {"images_per_second": rate, "p50_ms": 1.0, "p99_ms": 2.0, "others": others}


def served(others: float = 0.0) -> dict[str, float]:
    return {"requests_per_second": 850.0, "p50_ms": 1.0, "p99_ms": 2.0, "cpu_us": 1.0, "errors": 0, "others": others}


def test_the_bare_server_answers_many_at_once_as_the_graph_does(bundle):
    server = yardstick("asgi", "asgi_server.py", bundle)
    call = server.calls[NULL, "bytes"]
    with Running(server) as running:
        running.check(call)
        assert running.window(call, 32, 1)["errors"] == 0
        running.check(call)


def test_a_right_answer_passes_and_a_wrong_one_is_refused(running, server):
    call = server.calls[NULL, "bytes"]
    running.check(call)
    with pytest.raises(WrongAnswer, match=r"differ by 0\.01 "):
        running.check(replace(call, expected=call.expected + 0.01))
    with pytest.raises(WrongAnswer, match="answered 404"):
        running.check(replace(call, path="/models/other/scores"))


def test_a_server_that_does_not_ask_for_the_key_is_refused(running, server):
    call = server.calls[NULL, "bytes"]
    with pytest.raises(WrongAnswer, match="without a key"):
        running.check(replace(call, headers=call.headers | {"Authorization": "Bearer eqk"}))


def test_a_window_counts_requests_errors_and_processor_time(running, server):
    needs.command("wrk")
    call = server.calls[NULL, "bytes"]
    found = running.window(call, 2, 1)
    assert found["requests_per_second"] > 0
    assert found["errors"] == 0
    assert found["p99_ms"] >= found["p50_ms"] > 0
    assert found["cpu_us"] * found["requests_per_second"] < 1e6 * 4  # not more processors than the program's threads
    assert found["cpu_us"] > 0
    assert running.window(replace(call, path="/models/other/scores"), 2, 1)["errors"] > 0


def test_all_processes_end_with_the_first_even_those_of_a_session_of_their_own():
    program = "import subprocess; subprocess.Popen(['sleep', '100'], start_new_session=True).wait()"
    with Processes([sys.executable, "-c", program], {}) as started:
        eventually(lambda: len(started.members()) == 2, seconds=30)
        members = started.members()
    for process in members:
        process.wait(30)
    assert not started.folder.exists()


def test_a_server_that_ends_says_why(server):
    with pytest.raises(CannotMeasure, match="no such thing"):
        Running(replace(server, command=[sys.executable, "-c", "raise SystemExit('no such thing')"]))


def test_bare_onnxruntime_runs_as_often_as_it_is_asked(bundle):
    with Bare(bundle / MODEL_FILE) as bare:
        for callers, batch in ((1, 1), (2, 8)):
            assert bare.run(callers=callers, batch=batch, seconds=0.1)["images_per_second"] > 0


def test_the_calibration_and_the_prior_change_what_is_expected(bundle):
    calls = ours(bundle, NULL)
    uniform = expected_scores(bundle, image())
    assert np.abs(calls["bytes"].expected - uniform).max() > 0.01
    np.testing.assert_allclose(expected_scores(bundle, image(), ClassPrior.uniform(100)), uniform, atol=1e-6)
    assert {call.expected.shape for call in calls.values()} == {(100,)}


def test_a_window_is_clean_only_between_equal_runs_on_a_quiet_machine():
    found = compared(around(1000), served(), around(1050))
    assert found["clean"]
    assert found["share"] == pytest.approx(850 / 1025, rel=1e-3)
    assert not compared(around(1000), served(), around(1120))["clean"]
    assert not compared(around(1000), served(others=0.06), around(1000))["clean"]
    assert not compared(around(1000), served(), around(1000, others=0.06))["clean"]


def test_a_stopped_run_goes_on_with_what_has_no_clean_window(server):
    def measured(round_number: int, *, clean: bool, errors: int = 0) -> dict:
        row = {"server": "fastapi", "network": NULL, "kind": "bytes", "connections": 32, "round": round_number}
        return row | {"clean": clean, "errors": errors}

    everything = {(NULL, "bytes"): [32]}
    assert open_rows(server, 0, []) == everything
    assert open_rows(server, 0, [measured(0, clean=False)]) == everything
    assert open_rows(server, 0, [measured(0, clean=True)]) == {}
    assert open_rows(server, 1, [measured(0, clean=True)]) == everything
    assert open_rows(server, 0, [measured(0, clean=False, errors=1)]) == {}


def test_a_failed_start_is_forgotten_after_a_good_one_and_a_wrong_answer_is_not():
    failed = {"server": "ray", "failed": "no port", "lasting": False}
    wrong = {"server": "ray", "failed": "other scores", "lasting": True}
    good = {"server": "ray", "versions": {}}
    assert failures([failed]) == {"ray": "no port"}
    assert failures([failed, good]) == {}
    assert failures([wrong, good, failed]) == {"ray": "other scores"}


def test_every_peer_has_pinned_requirements_and_a_program_that_its_digest_covers():
    for name in PEERS:
        pins = (PROGRAMS / f"{name}.txt").read_text().split()
        assert pins
        assert all("==" in pin for pin in pins)
        assert "torch" not in {pin.partition("==")[0] for pin in pins}
    assert len({digest(name) for name in (OURS, "asgi", "fastapi", *PEERS)}) == 3 + len(PEERS)


def test_show_prints_the_committed_tables():
    command = [sys.executable, "benchmarks/serving.py", "--show"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() in (ROOT / "docs" / "performance.md").read_text()
