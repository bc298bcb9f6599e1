"""LitServe: an API class; on a CPU one worker process a core, as its documentation says."""

from __future__ import annotations

from typing import Any

import litserve

from tests.bench.peers.work import PORT, WORKERS, answering


class Recognition(litserve.LitAPI):
    """A form with the photograph in, JSON out."""

    def setup(self, device: str) -> None:
        self.answer = answering()

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe reads the annotation
        return request["photo"].file.read()

    def predict(self, x: bytes) -> dict[str, Any]:
        return self.answer(x)

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Recognition(), accelerator="cpu", workers_per_device=WORKERS)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
