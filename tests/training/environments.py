"""A network of a few dozen weights, and batches of noise from several environments."""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from l2r2.training.objectives import Batch, Descent, Network, Step

CLASSES, SIZE = 3, 4


class TinyNetwork(nn.Module):
    """A convolution, rectified; its mean over space; a linear head. In timm's parts."""

    def __init__(self, classes=CLASSES, width=5, dropout=0.0, *, norm=False):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(width, classes)

    def forward_features(self, images):
        return self.norm(self.conv(images)).relu()

    def forward_head(self, maps, pre_logits=False):
        pooled = self.drop(maps.mean(dim=(2, 3)))
        return pooled if pre_logits else self.fc(pooled)

    def get_classifier(self):
        return self.fc

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


def make_network():
    """In double precision."""
    torch.manual_seed(0)
    return Network(TinyNetwork().double())


def make_batches(sizes=(6, 6), seed=0):
    """Noise around a mean that differs by environment, in double precision."""
    rng = np.random.default_rng(seed)
    batches, start = [], 0
    for number, size in enumerate(sizes):
        images = torch.from_numpy(rng.normal(0.5 * number, 1, (size, 3, SIZE, SIZE)))
        labels = torch.from_numpy(rng.integers(CLASSES, size=size))
        batches.append(Batch(images, labels, torch.arange(start, start + size), f"e{number}"))
        start += size
    return batches


def at(number=0, total=1000, seed=0):
    return Step(number, total, np.random.default_rng(seed))


def risks(network, batches):
    return [cross_entropy(network(b.images), b.labels).item() for b in batches]


def pooled(network, batches):
    return [network.features(b.images).detach().numpy() for b in batches]


def trained(network, objective, batches, steps=5, kind=torch.optim.Adam):
    """Weights after some steps from those of `network`, which stays as it is."""
    copied = Network(copy.deepcopy(network.module))
    descent = Descent(kind(copied.module.parameters(), 0.05))
    for number in range(steps):
        objective.update(copied, descent, batches, at(number, steps, seed=number))
    return nn.utils.parameters_to_vector(copied.module.parameters()).detach()
