"""Datasets that tests write."""

from collections.abc import Callable

MakeDataset = Callable[..., str]  # the fixture `make_dataset`
