"""From a recipe to tracked runs, tables and figures."""

from l2r2.experiments.experiment import Experiment as Experiment
from l2r2.experiments.experiment import load_experiment as load_experiment
from l2r2.experiments.run import run_experiment as run_experiment

__all__ = ["Experiment", "load_experiment", "run_experiment"]
