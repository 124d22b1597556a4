"""LitServe: `python litserve_server.py PORT MODEL`. Two workers for two cores, and no dynamic batching: with it, 8
connections were slower and 32 about as fast."""

import base64
import sys
from typing import Any

import litserve
from graph import scores, session

PORT, MODEL = sys.argv[1:]


class Scores(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.network = session(MODEL)

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["image"])

    def predict(self, pixels: bytes) -> list[float]:
        return scores(self.network, [pixels])[0]

    def encode_response(self, row: list[float]) -> dict[str, Any]:
        return {"scores": row}


if __name__ == "__main__":
    server = litserve.LitServer(Scores(), accelerator="cpu", workers_per_device=2, fast_queue=True)
    server.run(port=int(PORT), host="127.0.0.1", generate_client_file=False, log_level="warning", access_log=False)
