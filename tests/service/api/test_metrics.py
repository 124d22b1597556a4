"""What Prometheus gets from the service itself."""

from prometheus_client.parser import text_string_to_metric_families

UPLOAD = "/v1/models/pets/class-frequencies?role=training"
COUNTS = b"ant,4000\nbee,100\ncat,60\ndog,9\n"


def scraped(service):
    """The labels and the value of each series, by name."""
    answer = service.get("/metrics")
    assert answer.status_code == 200
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for each in family.samples:
            found.setdefault(each.name, []).append((each.labels, each.value))
    return found


def test_the_format_is_that_of_prometheus_and_says_so(service):
    assert service.get("/metrics").headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_the_process_and_its_garbage_collector_are_told_too(service):
    found = scraped(service)
    assert found["process_resident_memory_bytes"][0][1] > 0
    assert [labels["generation"] for labels, _ in found["python_gc_collections_total"]] == ["0", "1", "2"]


def test_what_is_active_follows_a_recalibration_and_is_one_series_a_model(service):
    method = service.get("/v1/models/pets").json()["active"]["calibration"]["method"]
    before = scraped(service)
    active = {"model": "pets", "version": "1", "calibration": "c1", "method": method, "prior": "uniform"}
    assert before["equipoise_active_info"] == [(active, 1)]
    assert before["equipoise_revision"] == [({"model": "pets"}, 1)]
    live = service.post(UPLOAD, content=COUNTS).json()["active"]
    after = scraped(service)
    active |= {"calibration": live["calibration"]["id"], "method": live["calibration"]["method"]}
    assert active["calibration"] == "c2"
    assert after["equipoise_active_info"] == [(active, 1)]
    assert after["equipoise_revision"] == [({"model": "pets"}, 2)]


def test_nothing_is_told_of_a_deleted_model(service):
    service.app.state.metrics.request("scores", "pets", 200, 0.01)
    assert ({"route": "scores", "model": "pets", "status": "200"}, 1) in scraped(service)["equipoise_requests_total"]
    assert service.delete("/v1/models/pets", headers={"If-Match": '"1"'}).status_code < 300
    found = scraped(service)
    assert not [labels for rows in found.values() for labels, _ in rows if labels.get("model") == "pets"]
    assert "equipoise_active_info" not in found
    assert found["equipoise_models_not_loaded"] == [({}, 0)]  # there is none, so none is missing


def test_a_state_that_cannot_be_loaded_is_degraded(service):
    assert scraped(service)["equipoise_degraded"] == [({}, 0)]
    service.app.state.follower.registry.fail("pets", "its network is damaged")
    found = scraped(service)
    assert found["equipoise_degraded"] == [({}, 1)]
    assert found["equipoise_models_not_loaded"] == [({}, 0)]  # the state before answers on


def test_the_route_is_described_as_text(service):
    described = service.get("/openapi.json").json()["paths"]["/metrics"]["get"]
    assert list(described["responses"]["200"]["content"]) == ["text/plain"]


def test_requests_are_counted_with_the_work_that_they_made(service, pixels):
    for image in (pixels[0], pixels[1]):
        octets = {"content": image.tobytes(), "headers": {"Content-Type": "application/octet-stream"}}
        assert service.post("/v1/models/pets/scores", **octets).status_code == 200
    assert service.post("/v1/models/nobody/scores", json={"logits": [1, 2]}).status_code == 404
    assert service.get("/v2/health/live").status_code == 200
    found = scraped(service)
    requests = {
        (each["route"], each["model"], each["status"]): count for each, count in found["equipoise_requests_total"]
    }
    assert requests == {("scores", "pets", "200"): 2, ("scores", "", "404"): 1, ("health", "", "200"): 1}
    assert ({"route": "scores"}, 3) in found["equipoise_request_seconds_count"]
    assert ({"model": "pets"}, 2) in found["equipoise_batch_size_sum"]
    assert ({"model": "pets"}, 2) in found["equipoise_queue_seconds_count"]


def test_a_change_and_a_failed_request_are_lines_with_the_id_that_the_answer_has(service, caplog):
    caplog.set_level("INFO", logger="service.requests")
    service.get("/v2/health/live")
    service.post("/v1/models/pets/scores", json={"logits": [1, 2, 3, 4]})
    failed = service.post("/v1/models/pets/scores?prior=secret", json={"logits": [1]})
    changed = service.post(UPLOAD, content=COUNTS, headers={"X-Request-Id": "mine"})
    lines = [each for each in caplog.records if each.name == "service.requests"]
    assert [(each.path, each.status) for each in lines] == [
        ("/v1/models/pets/scores", failed.status_code),
        ("/v1/models/pets/class-frequencies", changed.status_code),
    ]
    assert failed.headers["X-Request-Id"]
    assert changed.headers["X-Request-Id"] == "mine"
    assert "secret" not in caplog.text
