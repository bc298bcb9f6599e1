"""Photographs as one table: path, label, split, group, digest, metadata. One source a file."""

from l2r2.datasets.dataset import Card as Card
from l2r2.datasets.dataset import Dataset as Dataset
from l2r2.datasets.dataset import load_dataset as load_dataset

__all__ = ["Card", "Dataset", "load_dataset"]
