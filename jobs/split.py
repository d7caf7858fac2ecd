"""Cut an .npz with a standard split into two, to be converted.

    python jobs/split.py protein.npz 0        # writes protein-train.npz and protein-test.npz here

The split is an array ``test_index`` (splits, rows of the test part) or ``test_fold`` (rows: the split in which a row is
tested); the number says which.
"""

from pathlib import Path

import click
import numpy as np


@click.command()
@click.argument("table")
@click.argument("split", default=0)
def main(table: str, split: int) -> None:
    with np.load(table) as arrays:
        x, y = arrays["x"], arrays["y"]
        test = (
            arrays["test_fold"] == split
            if "test_fold" in arrays
            else np.isin(np.arange(len(x)), arrays["test_index"][split])
        )
    for name, rows in (("train", ~test), ("test", test)):
        path = f"{Path(table).stem}-{name}.npz"
        np.savez(path, x=x[rows], y=y[rows])
        print(f"{path}: {rows.sum():,} rows, standard deviation of the target {y[rows].std():.4g}")


if __name__ == "__main__":
    main()
