"""The tables of docs/performance.md are those of the committed windows, and say what the windows say."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving_table import as_markdown, interval, read_results

DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"


def window(**changed: Any) -> dict[str, Any]:
    found = {"server": "ours", "network": "resnet32", "kind": "bytes", "connections": 8, "round": 0, "clean": True}
    found |= {"requests_per_second": 2000.0, "p50_ms": 4.0, "p99_ms": 8.0, "cpu_us": 900.0, "errors": 0}
    return found | {"share": 0.85, "alone_p50_ms": 3.7} | changed


def table(*windows: dict[str, Any], **failed: str) -> str:
    return as_markdown({"windows": list(windows), "failed": failed})


def row(markdown: str, start: str) -> list[str]:
    (found,) = (line for line in markdown.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_documented_tables_are_those_of_the_committed_windows():
    assert as_markdown(read_results()) in DOCUMENT.read_text()


def test_no_committed_window_that_counts_was_disturbed():
    for each in read_results()["windows"]:
        assert not each["clean"] or (each["alone_change"] < 0.10 and each["others"] < 0.05)


@pytest.mark.parametrize(
    ("count", "left_out"),
    [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (12, 2)],  # P(outside) = 2 P(Binomial(9, 1/2) <= 1) = 20/512 < 0.05
)
def test_the_interval_leaves_out_as_many_windows_as_95_percent_allow(count, left_out):
    assert interval(range(count, 0, -1)) == ((count + 1) / 2, 1 + left_out, count - left_out)


def test_a_disturbed_window_is_counted_and_changes_nothing():
    quiet = [window(share=share, round=number) for number, share in enumerate((0.8, 0.9, 0.84))]
    cells = row(table(*quiet, window(share=0.1, requests_per_second=9.0, clean=False)), "Equipoise")
    assert cells[3] == "2000"
    assert cells[8] == "0.84 (0.80 to 0.90)"
    assert cells[-1] == "3/4"


def test_what_was_not_measured_shows_a_dash():
    assert row(table(window()), "Equipoise")[2:5] == ["-", "2000", "-"]


def test_one_connection_is_compared_with_one_caller_of_onnxruntime():
    assert row(table(window(connections=1, p50_ms=1.25, alone_p50_ms=0.85)), "Equipoise")[10] == "0.40 (0.40 to 0.40)"


def test_a_row_with_failed_requests_is_invalid_and_shows_no_figure():
    cells = row(table(window(), window(errors=3, connections=32)), "Equipoise")
    assert cells[2:] == ["invalid: 3 requests failed", *[""] * 10]


def test_failed_requests_show_with_the_null_network_too():
    lines = table(window(network="null", connections=32, errors=2, cpu_us=51.0))
    assert "invalid: 2 requests failed" in lines
    assert "51" not in lines


def test_a_peer_that_could_not_be_started_is_there_with_the_reason():
    cells = row(table(window(), mlserver="the server ended:\nno | loop"), "MLServer")
    assert cells[1] == "not measured: the server ended: no / loop"


def test_servers_stand_in_one_order_and_the_null_network_in_a_table_of_its_own():
    shown = table(
        window(server="ray"), window(server="fastapi"), window(network="null", connections=32, cpu_us=51.0), window()
    )
    first, second = shown.split("network that computes nothing")
    assert [line.split("|")[1].strip() for line in first.splitlines()[2:5]] == [
        "Equipoise",
        "plain FastAPI",
        "Ray Serve",
    ]
    assert "| Equipoise | bytes | 2000 | 4.0 / 8.0 | 51 (51 to 51) | 1/1 |" in second


def test_the_best_peer_is_compared_round_by_round():
    ours = [window(share=0.8, round=0), window(share=0.6, round=1), window(share=99.0, round=2)]
    best = [window(server="mlserver", share=0.4, round=0), window(server="mlserver", share=0.2, round=1)]
    other = [window(server="ray", kind="bytes", share=0.1, round=number) for number in (0, 1)]
    said = "With 8 connections Equipoise answers 2.5 (2.0 to 3.0) times the requests of MLServer, the best peer."
    assert said in table(*ours, *best, *other, window(server="fastapi", share=0.5))
