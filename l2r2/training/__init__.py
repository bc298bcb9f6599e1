"""Fitting one classifier on one view."""

from l2r2.training.fit import Fitted as Fitted
from l2r2.training.fit import fit_classifier as fit_classifier

__all__ = ["Fitted", "fit_classifier"]
