"""Datasets of transitions: what they are, where they come from, and what is computed from them before training."""

from segue.data.dataset import Dataset
from segue.data.errors import DataError
from segue.data.load import list_datasets, load_dataset

__all__ = ["DataError", "Dataset", "list_datasets", "load_dataset"]
