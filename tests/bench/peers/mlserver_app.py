"""MLServer: a custom runtime, one inference worker a core; gRPC, since its HTTP would need base64."""

from __future__ import annotations

import json

from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from tests.bench.peers.work import answering


class Recognition(MLModel):
    """One input of bytes in, one output of JSON out."""

    async def load(self) -> bool:
        self.answer = answering()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (data,) = payload.inputs[0].data
        answer = StringCodec.encode_output("answer", [json.dumps(self.answer(data))])
        return InferenceResponse(model_name=self.name, outputs=[answer])
