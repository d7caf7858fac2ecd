"""Test accuracy of image jobs, and of changes to the first of them one at a time.

    python jobs/images.py cifar10.npz train.npz test.npz
    python jobs/bench_images.py train.npz test.npz jobs/cifar10.toml jobs/pixels.toml            # all of the images
    python jobs/bench_images.py train.npz test.npz jobs/cifar10.toml --rows 4000 --test-rows 2000 --seeds 3 \
        --change "n_components = 4096" --change "whiten = 0.0" --change "flips = false"

A change is TOML for the ``[features]`` of the first job.  ``--rows`` takes a random part of the images (seed 0), the
same for all; the seeds 0, 1, … are those of the maps.  Every model chooses its penalty by cross-validation on its
training images, in this process.  Seconds are those from Zarr to model and to the accuracy; of the processor, user and
system together: on a machine that is shared, the ones to compare.
"""

import tempfile
import tomllib
from pathlib import Path
from typing import Any

import click
import numpy as np
from harness import file, json_option, result, save, started
from tables import markdown

import ntkdist as nd
from ntkdist.memory import peak_memory_bytes
from ntkdist.spec import decode, read_toml


@click.command()
@click.argument("train", type=click.Path(exists=True))
@click.argument("test", type=click.Path(exists=True))
@click.argument("jobs", nargs=-1, required=True)
@click.option("--change", "changes", multiple=True, help="Features of the first job to change, as TOML.")
@click.option("--base", default="", help="The same for all rows of the table.")
@click.option("--rows", default=0, help="Training images, 0: all.")
@click.option("--test-rows", default=0)
@click.option("--seeds", default=1)
@json_option
def main(
    train: str,
    test: str,
    jobs: tuple[str, ...],
    changes: tuple[str, ...],
    base: str,
    rows: int,
    test_rows: int,
    seeds: int,
    out: str,
) -> None:
    same = tomllib.loads(base)
    named = [(Path(path).stem, path, same) for path in jobs]
    named += [(change, jobs[0], same | tomllib.loads(change)) for change in changes]
    with tempfile.TemporaryDirectory() as place:
        stores = [store(train, rows, f"{place}/train"), store(test, test_rows, f"{place}/test")]
        found: list[dict[str, Any]] = []
        data = [file(train), file(test)]
        notes = [f"{count(stores[0]):,} images, {count(stores[1]):,} to test on", f"seeds 0 to {seeds - 1} of the maps"]
        for name, path, change in named:
            each = np.array([measured(job(path, change, seed, stores[0]), stores[1]) for seed in range(seeds)])
            row: dict[str, Any] = {"features": name, "m": job(path, change, 0, stores[0]).features.n_components}
            row |= dict(zip(("accuracy, %", "processor seconds", "seconds"), each.T.tolist(), strict=True))
            found.append(row | {"peak GB so far": round(peak_memory_bytes() / 1e9, 1)})
            print(found[-1], flush=True)
            if out:
                save(out, result(Path(train).stem, found, data, notes))
        print(markdown(result(Path(train).stem, found, data, notes)))


def count(dataset: str) -> int:
    """Its rows."""
    return nd.Dataset(dataset).layout().rows


def store(source: str, rows: int, place: str) -> str:
    """A dataset of some images, in the order of their archive."""
    if rows:
        with np.load(source) as f:
            chosen = np.sort(np.random.default_rng(0).permutation(len(f["y"]))[:rows])
            np.savez(f"{place}.npz", x=f["x"][chosen], y=f["y"][chosen])
        source = f"{place}.npz"
    nd.convert(source, f"{place}.zarr", classes=True)
    return f"{place}.zarr"


def job(path: str, change: dict[str, Any], seed: int, train: str) -> nd.Job:
    data: dict[str, Any] = read_toml(path)
    data["dataset"] = {"store": train}
    data["features"] |= change | {"seed": seed}
    return decode(data, nd.Job, path)


def measured(what: nd.Job, test: str) -> list[float]:
    """Accuracy in percent, and the seconds of fitting and evaluating: of the processor, and by the clock."""
    elapsed = started()
    accuracy = nd.evaluate(nd.fit(what).model, test)["accuracy"]
    return [100 * accuracy, elapsed().processor, elapsed().wall]


if __name__ == "__main__":
    main()
