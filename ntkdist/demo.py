"""The main job on real data that is installed with the package: from a raw table to a model beside a linear one.

The data are the 1,797 handwritten digits that ship with scikit-learn (UCI Optical Recognition of Handwritten Digits):
64 grey values and a class each.
"""

import csv
import time
from pathlib import Path

import msgspec

import ntkdist as nd
from ntkdist.errors import NtkdistError
from ntkdist.groups import refuse_existing

TEST_EVERY = 4


def run(out: str, workers: int) -> None:
    """Write the table, convert it, fit on a local cluster, and report the test error beside a linear model's.

    Raises
    ------
    NtkdistError
        If the kernel model does not win, which would be a defect.
    """
    start = time.perf_counter()
    refuse_existing(out)
    place = Path(out)
    place.mkdir(parents=True)
    for name, rows in write_tables(place).items():
        nd.convert(str(place / f"{name}.csv"), str(place / f"{name}.zarr"), target=["digit"], classes=True)
        print(f"converted  {place / name}.csv → {place / name}.zarr  ({rows:,} rows)")
    job = nd.Job(
        dataset=nd.Dataset(str(place / "train.zarr")),
        features=nd.NTKRandomFeatures(n_components=1024, depth=2),
        cluster=nd.Local(workers=workers),
    )
    linear = msgspec.structs.replace(job, features=nd.Linear(n_components=64), cluster=None)
    accuracy = {}
    print(f"\n{'model':<8}{'test accuracy':>15}{'features':>10}{'alpha':>9}{'processes':>11}{'seconds':>9}")
    for name, each in (("linear", linear), ("NTK", job)):
        result = nd.fit(each, out=str(place / f"{name.lower()}-run"))
        accuracy[name] = nd.evaluate(result.model, str(place / "test.zarr"))["accuracy"]
        run = result.report["run"]
        print(
            f"{name:<8}{accuracy[name]:>15.2%}{each.features.n_components:>10,}{result.model.alpha[0]:>9.3g}"
            f"{run['workers']:>11}{run['seconds']['total']:>9.1f}"
        )
    if accuracy["NTK"] <= accuracy["linear"]:
        raise NtkdistError(f"The kernel model lost to the linear one, {accuracy}; please report this")
    wrong = (1 - accuracy["linear"]) / max(1 - accuracy["NTK"], 1e-9)
    print(f"\nThe linear model makes {wrong:.1f} times as many errors.  {time.perf_counter() - start:.0f} s in all.")
    print(f"report     {place / 'ntk-run' / 'report.json'}\nmodel      {place / 'ntk-run' / 'model.zarr'}")


def write_tables(place: Path) -> dict[str, int]:
    """The digits as ``train.csv`` and ``test.csv``, every fourth row for testing; returns their rows."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rows = {"train": 0, "test": 0}
    with open(place / "train.csv", "w", newline="") as train, open(place / "test.csv", "w", newline="") as test:
        writers = {"train": csv.writer(train), "test": csv.writer(test)}
        for writer in writers.values():
            writer.writerow([*(f"pixel{i}" for i in range(64)), "digit"])
        for i, (pixels, digit) in enumerate(zip(x.astype(int), y, strict=True)):
            name = "test" if i % TEST_EVERY == 0 else "train"
            writers[name].writerow([*pixels, digit])
            rows[name] += 1
    return rows
