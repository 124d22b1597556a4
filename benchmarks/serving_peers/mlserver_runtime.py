"""MLServer's runtime: an image as base64 in, scores out. The environment names the graph (`MODEL`).

No adaptive batching, which waits; two workers, which were faster than one, or none with threads.
"""

import base64
import os

from graph import scores, session
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Scores(MLModel):
    async def load(self) -> bool:
        self.network = session(os.environ["MODEL"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (row,) = scores(self.network, [base64.b64decode(payload.inputs[0].data[0])])
        output = ResponseOutput(name="scores", shape=[1, len(row)], datatype="FP32", data=row)
        return InferenceResponse(model_name=self.name, outputs=[output])
