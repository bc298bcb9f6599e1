"""BentoML: a service class, one worker process a core; a file comes as a path, as its documentation says."""

from pathlib import Path
from typing import Any

import bentoml

from tests.bench.peers.work import WORKERS, answering


@bentoml.service(workers=WORKERS, traffic={"timeout": 60})
class Recognition:
    """A form with the photograph in, JSON out."""

    def __init__(self) -> None:
        self.answer = answering()

    @bentoml.api
    def recognize(self, photo: Path) -> dict[str, Any]:
        return self.answer(photo.read_bytes())
