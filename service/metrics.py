"""What Prometheus reads. Counts and times are kept in plain lists, and get names and labels when they are scraped.

The library's own counters and histograms take a lock for every number, and cost a request about four times as much.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    GCCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from service.runtime.live import Registry

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
ROUTES = ("scores", "infer", "manage", "health", "metrics")
REASONS = ("full", "deadline", "gone")
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
EXAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class Metrics:
    """The series of one application. Only models that the registry knows get series, so that no client can make any.

    Args: queued, how many requests wait for a model thread; degraded, what works only in part.
    """

    def __init__(self, registry: Registry, *, queued: Callable[[], int], degraded: Callable[[], Sequence[str]]) -> None:
        self._registry = registry
        self._queued = queued
        self._degraded = degraded
        self._requests: dict[tuple[str, str, int], int] = {}  # by route, model, status
        self._seconds = {route: _Histogram(SECONDS) for route in ROUTES}
        self._batches: dict[str, _Batches] = {}
        self._dropped = dict.fromkeys(REASONS, 0)
        self._lock = threading.Lock()  # of what threads write; the event loop alone writes the requests
        self._series = CollectorRegistry()
        self._series.register(self)
        ProcessCollector(registry=self._series)
        GCCollector(registry=self._series)

    def request(self, route: str, model: str, status: int, seconds: float) -> None:
        """Count an answer, on the event loop. Args: route, one of ROUTES; model, as asked for, "" where none was."""
        self._seconds[route].add(seconds)
        key = (route, model, status)
        try:
            self._requests[key] += 1
        except KeyError:
            key = (route, model if model in self._registry.names() else "", status)  # the first, or of no model
            self._requests[key] = self._requests.get(key, 0) + 1

    def batch(self, model: str, examples: int, waited: Sequence[float], seconds: float) -> None:
        """Count a batch, from any thread.

        Args: model, "" for work of no network; waited, seconds of each piece in the queue; seconds, of the work.
        """
        with self._lock:
            batches = self._batches.get(model)
            if batches is None:
                batches = self._batches[model] = _Batches()
            batches.examples.add(examples)
            batches.seconds.add(seconds)
            for each in waited:
                batches.waited.add(each)

    def dropped(self, reason: str) -> None:
        """Count a request that was dropped before it was answered, from any thread. Args: reason, one of REASONS."""
        with self._lock:
            self._dropped[reason] += 1

    def text(self) -> bytes:
        """All series, as CONTENT_TYPE says."""
        return generate_latest(self._series)

    def collect(self) -> Iterator[Metric]:
        """What the library asks for at each scrape. Series of deleted models go."""
        known = self._registry.names()
        yield from self._of_requests({"", *known})
        yield from self._of_batches({"", *known})
        yield from self._of_state(known)

    def _of_requests(self, known: set[str]) -> Iterator[Metric]:
        requests = CounterMetricFamily("equipoise_requests", "Requests answered.", labels=["route", "model", "status"])
        for key, count in self._requests.copy().items():
            route, model, status = key
            if model in known:
                requests.add_metric([route, model, str(status)], count)
            else:
                self._requests.pop(key, None)  # another scrape may have been first
        yield requests
        seconds = HistogramMetricFamily(
            "equipoise_request_seconds", "From the head of a request to the end of its answer.", labels=["route"]
        )
        for route, histogram in self._seconds.items():
            seconds.add_metric([route], *histogram.shown())
        yield seconds
        dropped = CounterMetricFamily(
            "equipoise_dropped", "Requests dropped before they were answered.", labels=["reason"]
        )
        for reason, count in self._dropped.items():
            dropped.add_metric([reason], count)
        yield dropped

    def _of_batches(self, known: set[str]) -> Iterator[Metric]:
        waited = HistogramMetricFamily(
            "equipoise_queue_seconds", "How long a request waited for a model thread.", labels=["model"]
        )
        seconds = HistogramMetricFamily(
            "equipoise_batch_seconds", "How long a batch took to decode and run.", labels=["model"]
        )
        examples = HistogramMetricFamily("equipoise_batch_size", "Examples in a batch.", labels=["model"])
        with self._lock:
            for model in self._batches.keys() - known:
                del self._batches[model]
            for model, batches in self._batches.items():
                waited.add_metric([model], *batches.waited.shown())
                seconds.add_metric([model], *batches.seconds.shown())
                examples.add_metric([model], *batches.examples.shown())
        yield from (waited, seconds, examples)

    def _of_state(self, known: Sequence[str]) -> Iterator[Metric]:
        live = [model for model in map(self._registry.find, known) if model is not None]
        yield _gauge("equipoise_queue_requests", "Requests that wait for a model thread.", self._queued())
        yield _gauge("equipoise_degraded", "1 while something works only in part.", bool(self._degraded()))
        yield _gauge("equipoise_models_not_loaded", "Models that cannot answer.", len(known) - len(live))
        active = GaugeMetricFamily(
            "equipoise_active_info",
            "1 for what answers requests now.",
            labels=["model", "version", "calibration", "method", "prior"],
        )
        revision = GaugeMetricFamily("equipoise_revision", "The revision that is live.", labels=["model"])
        for model in live:
            method = model.deployment.calibration.method
            active.add_metric([model.name, model.version, model.calibration, method, model.prior], 1)
            revision.add_metric([model.name], model.revision)
        yield from (active, revision)


class _Histogram:
    """How many values lie in each bucket, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def shown(self) -> tuple[list[tuple[str, float]], float]:
        """As the library wants it: the upper bound of each bucket with the number of values up to it; the sum."""
        bounds = [*map(str, map(float, self._bounds)), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True)), self._sum


class _Batches:
    """Of one model."""

    __slots__ = ("examples", "seconds", "waited")

    def __init__(self) -> None:
        self.examples = _Histogram(EXAMPLES)
        self.seconds = _Histogram(SECONDS)
        self.waited = _Histogram(SECONDS)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)
