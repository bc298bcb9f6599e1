"""What the objectives share: batches by environment, the network in its parts, checked numbers, one step down."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from l2r2.classification.timm_model import head_of
from l2r2.errors import ConfigError


class Batch(NamedTuple):
    """Examples of one environment, with their positions in the training set."""

    images: Float[Tensor, "n 3 size size"]
    labels: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    environment: str


class Step(NamedTuple):
    """Where training stands: the number of this step from 0, of how many, and what draws its random numbers."""

    number: int
    total: int
    rng: np.random.Generator


@dataclass(frozen=True, slots=True)
class Number:
    """One setting of an objective: its default and its range, both ends included."""

    default: float
    low: float = 0.0
    high: float = math.inf
    whole: bool = False


class Network:
    """A timm model in its parts: images → maps → features → logits."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, images: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n k"]:
        logits: Tensor = self.module(images)
        return logits

    def maps(self, images: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n ..."]:
        """What the backbone makes of images: n × d × h × w where it is a convolutional one."""
        maps: Tensor = self.module.forward_features(images)  # type: ignore[operator]
        return maps

    def pool(self, maps: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        features: Tensor = self.module.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        return features

    def features(self, images: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n d"]:
        return self.pool(self.maps(images))

    def classify(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        logits: Tensor = head_of(self.module)(features)
        return logits


class Descent:
    """Steps down a loss; `backward` stands for `Tensor.backward` where precision needs another."""

    def __init__(self, optimizer: torch.optim.Optimizer, backward: Callable[[Tensor], Any] = Tensor.backward) -> None:
        self._optimizer, self._backward = optimizer, backward

    def __call__(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        self._backward(loss)
        self._optimizer.step()

    def forget(self) -> None:
        """Drop momentum and the like, as in a new optimizer; the learning rate stays."""
        self._optimizer.state.clear()


class Rehearsal(Protocol):
    """What an objective may do before the first epoch."""

    def train(self, epochs: int) -> None:
        """Fit the network by plain risk minimisation, at the full learning rate; the optimizer forgets it after."""

    def examples(self) -> Iterable[Batch]:
        """Each training example once, not augmented."""


class Objective(ABC):
    """What training minimises over batches of several environments, one batch each.

    Attributes:
        numbers: Its settings by name, with defaults and ranges.
        least_batch: Examples of an environment without which it is not defined.
    """

    numbers: ClassVar[Mapping[str, Number]] = {}
    least_batch: ClassVar[int] = 1

    def __init__(self, settings: Mapping[str, float], environments: int, label_smoothing: float = 0.0) -> None:
        self.settings = {name: settings.get(name, number.default) for name, number in self.numbers.items()}
        self.environments, self.label_smoothing = environments, label_smoothing

    @abstractmethod
    def loss(self, network: Network, batches: Sequence[Batch], step: Step) -> Float[Tensor, ""]:
        """The loss of this step."""

    def update(self, network: Network, descent: Descent, batches: Sequence[Batch], step: Step) -> float:
        """Change the network by one step; gives the loss before it."""
        loss = self.loss(network, batches, step)
        descent(loss)
        return loss.item()

    def begin(self, network: Network, rehearsal: Rehearsal) -> None:  # noqa: B027  most have nothing to do
        """Called before the first epoch, and again where a fit is resumed."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers with which a resumed fit goes on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take a state up again."""

    def risk(self, logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Mean cross entropy."""
        return cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


class Annealed(Objective):
    """Mean risk of the environments + weight × a penalty on their logits.

    The weight is 1 for the first `anneal_steps` steps and `penalty` after; there the optimizer forgets, because Adam
    does not like the jump in the gradients' size.

    Source: DomainBed, algorithms.py, IRM and VREx (Gulrajani and Lopez-Paz 2021, arXiv:2007.01434).
    """

    @abstractmethod
    def penalty(self, logits: Sequence[Tensor], batches: Sequence[Batch], risks: Float[Tensor, " e"]) -> Tensor:
        """What is penalised, given each environment's logits and risk."""

    def loss(self, network: Network, batches: Sequence[Batch], step: Step) -> Float[Tensor, ""]:
        logits = apart(network(together(batches)), batches)
        risks = torch.stack([self.risk(part, batch.labels) for part, batch in zip(logits, batches, strict=True)])
        weight = self.settings["penalty"] if step.number >= self.settings["anneal_steps"] else 1.0
        return risks.mean() + weight * self.penalty(logits, batches, risks)

    def update(self, network: Network, descent: Descent, batches: Sequence[Batch], step: Step) -> float:
        if step.number == self.settings["anneal_steps"]:
            descent.forget()
        return super().update(network, descent, batches, step)


def together(batches: Sequence[Batch]) -> Float[Tensor, "n 3 size size"]:
    """All images, environment after environment; one pass, so that batch statistics are the same for all."""
    return torch.cat([batch.images for batch in batches])


def apart(values: Tensor, batches: Sequence[Batch]) -> list[Tensor]:
    """Rows by environment again."""
    return list(torch.split(values, [len(batch.labels) for batch in batches]))


def all_labels(batches: Sequence[Batch]) -> Int[Tensor, " n"]:
    """Labels in the order of `together`."""
    return torch.cat([batch.labels for batch in batches])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every part back in its own mode after."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def check_numbers(name: str, known: Mapping[str, Number], given: Mapping[str, float]) -> None:
    """Check settings of the objective `name`.

    Raises:
        ConfigError: an unknown setting (the known ones are named) or a value outside its range.
    """
    for key, value in given.items():
        if key not in known:
            raise ConfigError(
                f"train.objective_settings: objective {name} has no setting {key!r}; it has "
                + (", ".join(known) or "none")
            )
        number = known[key]
        if not number.low <= value <= number.high or not math.isfinite(value) or (number.whole and value % 1):
            what = "a whole number" if number.whole else "a number"
            bounds = f"from {number.low:g}" + (f" to {number.high:g}" if math.isfinite(number.high) else " up")
            raise ConfigError(f"train.objective_settings.{key} = {value:g}: objective {name} expects {what} {bounds}")
