"""What code of before saved in its first format: data, runs, a model and a checkpoint, written by ``old/write.py``."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

import ntkdist as nd

_ROWS = np.arange(24)[:, None] * [1.0, 2.0, 3.0]
X = np.sin(_ROWS) * [1, 30, 5] + np.where(_ROWS[:, :1] < 12, -2.0, 7.0)
Y = np.stack([np.abs(X[:, 0]) + X[:, 1], np.cos(_ROWS[:, 0])], axis=1)
LABELS = np.digitize(X[:, 1], [-15, 15])
NEW = np.concatenate([X, 4 * X[:6]])  # of which some are out of the range of the rows
PARTS = {"here": slice(0, 12), "there": slice(12, 24)}
MAP = nd.NTKRandomFeatures(16, depth=1, bias=0.5)
PLAN = nd.PlanTable(folds=2, dtype="float64", threads=1)
CHECKPOINT = "checkpoint"  # of which two of four shards are finished


def checkpointed(store: str, checkpoint: str) -> nd.Job:
    """The job that was cut off."""
    plan = nd.PlanTable(folds=2, shards=4, dtype="float64", threads=1, checkpoint=checkpoint)
    return nd.Job(nd.Dataset(store), MAP, (1.0,), plan=plan)


def unpack(folder: Path) -> dict[str, Any]:
    """Unpack all of it into a folder, and return what the models predicted for NEW then."""
    with tarfile.open(Path(__file__).parent / "old" / "saved.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    predictions: dict[str, Any] = json.loads((folder / "predictions.json").read_text())
    return predictions
