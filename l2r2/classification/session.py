"""A classifier on a runtime session."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from l2r2.errors import BackendError
from l2r2.types import Logits, Session


class SessionClassifier:
    """One input "n 3 size size", first output "n k".

    Attributes:
        classes: k; checked on every batch.
        session: What runs it.
    """

    def __init__(self, session: Session, input_name: str, classes: int) -> None:
        self.session = session
        self._input = input_name
        self.classes = classes

    def logits(self, images: Float32[np.ndarray, "n 3 size size"]) -> Logits:
        """Rows in order.

        Raises:
            BackendError: the model gave another shape, or numbers that are not finite.
        """
        if len(images) == 0:
            return np.empty((0, self.classes), np.float32)
        logits = next(iter(self.session.infer({self._input: images}).values()))
        if logits.shape != (len(images), self.classes):
            raise BackendError(f"the model gave logits {logits.shape}; expected {(len(images), self.classes)}")
        if not np.isfinite(logits).all():
            raise BackendError("the model gave logits that are not finite; its export or its precision is broken")
        return logits.astype(np.float32, copy=False)
