"""Ray Serve with its settings for throughput: `python ray_server.py PORT MODEL`. Stays until it is stopped."""

import sys
import time
from typing import Any

import ray
from graph import scores, session
from ray import serve
from starlette.requests import Request

PORT, MODEL = sys.argv[1:]


@serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
class Scores:
    def __init__(self, model: str) -> None:
        self.network = session(model)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.0)
    async def rows(self, pixels: list[bytes]) -> list[list[float]]:
        return scores(self.network, pixels)

    async def __call__(self, request: Request) -> dict[str, Any]:
        return {"scores": await self.rows(await request.body())}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(PORT)})
    serve.run(Scores.bind(MODEL), route_prefix="/scores")
    while True:
        time.sleep(60)
