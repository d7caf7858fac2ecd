"""The script that wrote ``saved.tar.xz`` beside it, run with the code of commit 8569aa5, which saved format 1.

``git worktree add --detach OLD 8569aa5``, then ``PYTHONPATH=OLD python tests/support/old/write.py``.
"""

import json
import os
import sys
import tarfile
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

import ntkdist as nd

sys.path.insert(0, str(Path(__file__).parent.parent))
from saved_before import CHECKPOINT, LABELS, MAP, NEW, PARTS, PLAN, X, Y, checkpointed


@contextmanager
def cut_after_two(phase, rows):
    left = [2 * (phase == "equations")]

    def done(count):
        left[0] -= 1
        if left[0] == 0:
            raise InterruptedError

    yield done


def write() -> None:
    predictions = {}
    for kind, y in (("numbers", Y), ("classes", LABELS)):
        for name, rows in PARTS.items():
            np.savez("a.npz", x=X[rows], y=y[rows])
            data = f"{kind}-{name}.zarr"
            nd.convert("a.npz", data, target=["y"], classes=kind == "classes", shuffle_seed=None, rows_per_partition=3)
        for run, data, reuse in (("here", "here", ""), ("there", "there", ""), ("scaled", "there", f"{kind}-here-run")):
            preprocess = nd.Preprocess(reuse=reuse)
            job = nd.Job(nd.Dataset(f"{kind}-{data}.zarr"), MAP, (1.0,), plan=PLAN, preprocess=preprocess)
            predictions[f"{kind}-{run}"] = nd.fit(job, out=f"{kind}-{run}-run").model(NEW).tolist()
    job = nd.Job(nd.Dataset("numbers-here.zarr"), nd.Nystrom(6, nd.NTK(2, 0.5)), (1.0,), plan=PLAN)
    nd.save(model := nd.fit(job).model, "nystrom.zarr")
    predictions["nystrom"] = model(NEW).tolist()
    with suppress(InterruptedError):
        nd.fit(checkpointed("numbers-here.zarr", CHECKPOINT), watch=cut_after_two)
    assert len(list(Path(CHECKPOINT).glob("shard-*.kept"))) == 2
    Path("predictions.json").write_text(json.dumps(predictions))
    os.remove("a.npz")


if __name__ == "__main__":
    archive = Path(__file__).with_name("saved.tar.xz").absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write()
        with tarfile.open(archive, "w:xz") as tar:
            for path in sorted(Path().iterdir()):
                tar.add(path)
