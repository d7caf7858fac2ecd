"""Models and equations as they were saved before: without the range of their inputs, and without moments."""

import json
import shutil
from pathlib import Path

LATER = ("x_low", "x_high", "moments.*")


def as_before(group: Path) -> None:
    """Turn a saved model or equations into what the first format had."""
    path = group / "zarr.json"
    meta = json.loads(path.read_text())
    for name in ("moments", "datasets"):
        meta["attributes"].pop(name, None)
    meta["attributes"]["version"] = 1
    path.write_text(json.dumps(meta))
    for pattern in LATER:
        for array in group.glob(pattern):
            shutil.rmtree(array)
