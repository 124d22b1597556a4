"""BentoML with adaptive batching: `bentoml serve bentoml_service:Scores`. The environment names the graph (`MODEL`)."""

import base64
import os

import bentoml
from graph import scores, session


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 256})
class Scores:
    def __init__(self) -> None:
        self.network = session(os.environ["MODEL"])

    @bentoml.api(batchable=True, max_batch_size=8, max_latency_ms=1000)
    def scores(self, images: list[str]) -> list[list[float]]:
        return scores(self.network, [base64.b64decode(each) for each in images])
