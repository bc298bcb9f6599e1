"""Ray Serve: one replica a core behind its HTTP proxy."""

from __future__ import annotations

from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from tests.bench.peers.work import PORT, WORKERS, answering


@serve.deployment(num_replicas=WORKERS, ray_actor_options={"num_cpus": 1})
class Recognition:
    """The photograph as the body in, JSON out."""

    def __init__(self) -> None:
        self.answer = answering()

    async def __call__(self, request: Request) -> dict[str, Any]:
        return self.answer(await request.body())


if __name__ == "__main__":
    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Recognition.bind(), blocking=True)
