"""The demo: from a raw table to a kernel model and a linear model, on data that scikit-learn ships.

The data are 1,797 handwritten digits (UCI Optical Recognition of Handwritten Digits): 64 grey values and a class each.
"""

import time

import msgspec
import numpy as np

import ntkdist as nd
from ntkdist.data.storage import join, write_text
from ntkdist.data.zarr_groups import refuse_existing
from ntkdist.errors import NtkdistError

TEST_EVERY = 4


def run(out: str, workers: int) -> None:
    """Write the tables, convert them, fit on a local cluster, and print the test error beside a linear model's."""
    start = time.perf_counter()
    refuse_existing(out)
    for name, rows in tables().items():
        table, store = join(out, f"{name}.csv"), join(out, f"{name}.zarr")
        write_text(table, "".join(",".join(map(str, row)) + "\r\n" for row in rows))
        nd.convert(table, store, target=["digit"], classes=True)
        print(f"converted  {table} → {store}  ({len(rows) - 1:,} rows)")
    job = nd.Job(
        dataset=nd.Dataset(join(out, "train.zarr")),
        features=nd.NTKRandomFeatures(n_components=1024, depth=2),
        cluster=nd.Local(workers=workers),
    )
    linear = msgspec.structs.replace(job, features=nd.Linear(n_components=64), cluster=None)
    accuracy = {}
    print(f"\n{'model':<8}{'test accuracy':>15}{'features':>10}{'alpha':>9}{'processes':>11}{'seconds':>9}")
    for name, each in (("linear", linear), ("NTK", job)):
        result = nd.fit(each, out=join(out, f"{name.lower()}-run"))
        accuracy[name] = nd.evaluate(result.model, join(out, "test.zarr"))["accuracy"]
        m, alpha, run = each.map.n_components, result.model.alpha[0], result.report["run"]
        seconds = run["seconds"]["total"]
        print(f"{name:<8}{accuracy[name]:>15.2%}{m:>10,}{alpha:>9.3g}{run['workers']:>11}{seconds:>9.1f}")
    if accuracy["NTK"] <= accuracy["linear"]:
        raise NtkdistError(f"The kernel model lost to the linear one, {accuracy}; please report this")
    wrong = (1 - accuracy["linear"]) / max(1 - accuracy["NTK"], 1e-9)
    print(f"\nThe linear model makes {wrong:.1f} times as many errors.  {time.perf_counter() - start:.0f} s in all.")
    print(f"report     {join(out, 'ntk-run', 'report.json')}\nmodel      {join(out, 'ntk-run', 'model.zarr')}")


def tables() -> dict[str, list[list[str | int]]]:
    """Return the digits as lines of two tables with heads; every fourth digit is for testing."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    lines = np.column_stack([x, y]).astype(int)
    test = np.arange(len(lines)) % TEST_EVERY == 0
    head: list[str | int] = [*(f"pixel{i}" for i in range(64)), "digit"]
    return {name: [head, *lines[rows].tolist()] for name, rows in (("train", ~test), ("test", test))}
