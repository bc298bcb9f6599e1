"""Turning views into logits."""

from l2r2.classification.session import SessionClassifier as SessionClassifier

__all__ = ["SessionClassifier"]
