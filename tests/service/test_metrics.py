"""What is counted is what is scraped, no client can make series, and nothing of a deleted model stays."""

import re
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics

DOCUMENT = (Path(__file__).parents[2] / "docs/operations.md").read_text()


def samples(metrics):
    """Value by the name and the labels of each series."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {(each.name, *sorted(each.labels.items())): each.value for family in families for each in family.samples}


def value(metrics, name, **labels):
    return samples(metrics).get((f"equipoise_{name}", *sorted(labels.items())))


@pytest.fixture
def registry(service):
    """Of a service with one model, `pets`."""
    return service.app.state.follower.registry


@pytest.fixture
def metrics(registry):
    return Metrics(registry, queued=lambda: 0, degraded=list)


def test_requests_are_counted_by_route_model_and_status(metrics):
    for status in (200, 200, 404):
        metrics.request("scores", "pets", status, 0.01)
    metrics.request("manage", "", 200, 0.01)
    assert value(metrics, "requests_total", route="scores", model="pets", status="200") == 2
    assert value(metrics, "requests_total", route="scores", model="pets", status="404") == 1
    assert value(metrics, "requests_total", route="manage", model="", status="200") == 1


def test_a_client_cannot_make_series_by_asking_for_models_that_are_not_there(metrics):
    metrics.request("scores", "first", 404, 0.01)
    before = len(samples(metrics))
    for number in range(100):
        metrics.request("scores", f'"}} {number}\n', 404, 0.01)
    assert len(samples(metrics)) == before
    assert value(metrics, "requests_total", route="scores", model="", status="404") == 101


def test_the_time_of_a_request_is_in_the_bucket_that_holds_it_and_in_all_above(metrics):
    for seconds in (0.002, 0.0021, 100.0):
        metrics.request("infer", "pets", 200, seconds)
    counts = {le: value(metrics, "request_seconds_bucket", route="infer", le=le) for le in ("0.001", "0.002", "0.005")}
    assert counts == {"0.001": 0, "0.002": 1, "0.005": 2}  # a bound belongs to its bucket
    assert value(metrics, "request_seconds_bucket", route="infer", le="30.0") == 2
    assert value(metrics, "request_seconds_bucket", route="infer", le="+Inf") == 3
    assert value(metrics, "request_seconds_count", route="infer") == 3
    assert value(metrics, "request_seconds_sum", route="infer") == pytest.approx(100.0041)
    assert value(metrics, "request_seconds_count", route="scores") == 0


def test_a_batch_tells_its_size_its_time_and_how_long_each_of_its_requests_waited(metrics):
    metrics.batch("pets", 5, [0.003, 0.3], 0.04)
    metrics.batch("pets", 1, [0.001], 0.01)
    assert value(metrics, "batch_size_bucket", model="pets", le="1.0") == 1
    assert value(metrics, "batch_size_bucket", model="pets", le="8.0") == 2
    assert value(metrics, "batch_size_sum", model="pets") == 6
    assert value(metrics, "batch_seconds_count", model="pets") == 2
    assert value(metrics, "batch_seconds_sum", model="pets") == pytest.approx(0.05)
    assert value(metrics, "queue_seconds_count", model="pets") == 3
    assert value(metrics, "queue_seconds_sum", model="pets") == pytest.approx(0.304)


def test_work_of_no_network_is_told_without_a_model(metrics):
    metrics.batch("", 1, [0.001], 0.01)
    assert value(metrics, "batch_seconds_count", model="") == 1


def test_dropped_requests_have_a_reason_and_begin_at_zero(metrics):
    metrics.dropped("deadline")
    reasons = {reason: value(metrics, "dropped_total", reason=reason) for reason in ("full", "deadline", "gone")}
    assert reasons == {"full": 0, "deadline": 1, "gone": 0}


def test_what_waits_and_what_works_in_part_is_read_when_it_is_scraped(registry):
    queue, degraded = [], []
    metrics = Metrics(registry, queued=lambda: len(queue), degraded=lambda: degraded)
    assert [value(metrics, name) for name in ("queue_requests", "degraded")] == [0, 0]
    queue += [1, 2, 3]
    degraded += ["the database", "a model"]
    assert [value(metrics, name) for name in ("queue_requests", "degraded")] == [3, 1]


def test_a_model_that_cannot_be_loaded_is_counted_and_its_requests_are_told_apart(metrics, registry):
    registry.fail("pets", "the newest state is damaged")  # the state before answers on
    assert value(metrics, "models_not_loaded") == 0
    registry.fail("birds", "its network is damaged")
    metrics.request("scores", "birds", 503, 0.01)
    assert value(metrics, "models_not_loaded") == 1
    assert value(metrics, "requests_total", route="scores", model="birds", status="503") == 1
    assert value(metrics, "revision", model="birds") is None


def test_nothing_of_a_removed_model_stays_and_all_of_the_others(metrics, registry):
    registry.fail("birds", "its network is damaged")
    for name in ("pets", "birds", ""):
        metrics.request("scores", name, 200, 0.01)
        metrics.batch(name, 1, [0.001], 0.01)
    registry.remove("pets")
    found = samples(metrics)
    assert not [each for each in found if ("model", "pets") in each]
    assert value(metrics, "batch_seconds_count", model="birds") == 1
    assert value(metrics, "requests_total", route="scores", model="", status="200") == 1
    registry.fail("pets", "registered again")
    metrics.request("scores", "pets", 200, 0.01)
    assert value(metrics, "requests_total", route="scores", model="pets", status="200") == 1


def test_applications_count_apart(metrics, registry):
    other = Metrics(registry, queued=lambda: 0, degraded=list)
    metrics.dropped("full")
    assert value(other, "dropped_total", reason="full") == 0


def test_a_scrape_beside_requests_and_batches_loses_nothing_and_fails_nowhere(metrics):
    def count():
        for status in range(1000):
            metrics.request("scores", "pets", status, 0.01)
            metrics.batch("pets", 1, [0.001, 0.002], 0.01)

    counting = threading.Thread(target=count)
    counting.start()
    while counting.is_alive():
        list(metrics.collect())
    assert sum(each for key, each in samples(metrics).items() if key[0] == "equipoise_requests_total") == 1000
    assert value(metrics, "queue_seconds_count", model="pets") == 2000


def test_the_table_for_operators_lists_every_series_with_its_type_and_labels(metrics):
    metrics.request("scores", "pets", 200, 0.01)
    metrics.batch("pets", 1, [0.001], 0.01)
    told = re.findall(r"^\| `(equipoise_\w+)` \| (\w+) \| (.*?) \|", DOCUMENT, flags=re.MULTILINE)
    kinds = dict(re.findall(r"^# TYPE (equipoise_\w+) (\w+)$", metrics.text().decode(), flags=re.MULTILINE))
    assert {name: kind for name, kind, _ in told} == kinds
    found = samples(metrics)
    for name, kind, labels in told:
        (*_, last) = [key for key in found if key[0] == (f"{name}_bucket" if kind == "histogram" else name)]
        assert {label for label, _ in last[1:]} - {"le"} == set(re.findall(r"`(\w+)`", labels)), name
