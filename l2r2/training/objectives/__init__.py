"""Domain generalization: what training minimises when photographs come from several environments.

Formulas and defaults are DomainBed's (Gulrajani and Lopez-Paz 2021, arXiv:2007.01434), or of the paper where DomainBed
lacks the method. Source of the list: table 2.
"""

from __future__ import annotations

from collections.abc import Mapping

from l2r2 import config
from l2r2.training.objectives.base import Batch as Batch
from l2r2.training.objectives.base import Descent as Descent
from l2r2.training.objectives.base import Network as Network
from l2r2.training.objectives.base import Objective as Objective
from l2r2.training.objectives.base import Rehearsal as Rehearsal
from l2r2.training.objectives.base import Step as Step
from l2r2.training.objectives.base import check_numbers
from l2r2.training.objectives.causirl import CausIRL
from l2r2.training.objectives.coral import Coral
from l2r2.training.objectives.erm import ERM
from l2r2.training.objectives.fish import Fish
from l2r2.training.objectives.groupdro import GroupDRO
from l2r2.training.objectives.irm import IRM
from l2r2.training.objectives.jtt import JTT
from l2r2.training.objectives.mixup import Mixup
from l2r2.training.objectives.mmd import MMD
from l2r2.training.objectives.vrex import VREx
from l2r2.training.objectives.w2d import W2D

__all__ = ["OBJECTIVES", "Batch", "Descent", "Network", "Objective", "Rehearsal", "Step", "make_objective"]

OBJECTIVES: Mapping[config.Objective, type[Objective]] = {
    "erm": ERM,
    "groupdro": GroupDRO,
    "mixup": Mixup,
    "irm": IRM,
    "vrex": VREx,
    "coral": Coral,
    "mmd": MMD,
    "causirl": CausIRL,
    "fish": Fish,
    "w2d": W2D,
    "jtt": JTT,
}
"""By the names that `TrainSettings.objective` takes."""


def make_objective(
    name: config.Objective, settings: Mapping[str, float], environments: int, *, label_smoothing: float = 0.0
) -> Objective:
    """An objective with its numbers; those not given are its defaults.

    Args:
        settings: `TrainSettings.objective_settings`.
        environments: How many batches a step brings.
    Raises:
        ConfigError: the objective has no such setting, or not with this value.
    """
    kind = OBJECTIVES[name]
    check_numbers(name, kind.numbers, settings)
    return kind(settings, environments, label_smoothing)
