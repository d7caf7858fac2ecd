"""Test accuracy of image jobs and of changes to them, and errors and speed of the convolutional maps.

    python jobs/bench_images.py accuracy train.npz test.npz jobs/cifar10.toml jobs/pixels.toml     # all of the images
    python jobs/bench_images.py accuracy train.npz test.npz jobs/cifar10.toml --rows 4000 --test-rows 2000 --seeds 3 \
        --change "n_components = 4096" --change "whiten = 0.0" --change "flips = false"
    python jobs/bench_images.py cntk cifar10.npz [--images 40] [--seeds 6] [--exact exact.npz]

train.npz and test.npz are made by ``prepare.py images`` from an archive such as cifar10.npz.
"""

import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from harness import Result, file, options, started, timed, tiny_images
from plain_forms import PlainCNTK
from prepare import images_of

import ntkdist as nd
from ntkdist import backend
from ntkdist.memory import peak_memory_bytes
from ntkdist.spec import decode, read_toml

DEPTH, FILTER = 3, 3
MEASURED = ("error", "centred error", "drawn in s", "wall s", "processor s")
Make = Callable[[int, int], Callable[[Any], Any]]
MAPS: dict[str, tuple[Make, tuple[int, ...]]] = {  # name: (columns, seed) -> map, and columns to try
    "plain CNTKSketch": (lambda m, s: PlainCNTK(m, DEPTH, FILTER, seed=s), (256, 512, 1024, 2048)),
    "CNTKSketch": (lambda m, s: nd.CNTKSketch(m, DEPTH, FILTER, seed=s), (256, 512, 1024, 2048)),
    "CNTKRandomFeatures": (lambda m, s: nd.CNTKRandomFeatures(m, DEPTH, FILTER, seed=s), (128, 256, 512, 1024)),
}


@click.group()
def main() -> None:
    """Measure image jobs and convolutional maps."""


@main.command()
@click.argument("train", type=click.Path(exists=True))
@click.argument("test", type=click.Path(exists=True))
@click.argument("jobs", nargs=-1, required=True)
@click.option("--change", "changes", multiple=True, help="Features of the first job to change, as TOML.")
@click.option("--base", default="", help="Features to change in all rows of the table, as TOML.")
@click.option("--rows", default=0, help="Training images, drawn with seed 0; 0: all.")
@click.option("--test-rows", default=0, help="Test images, likewise.")
@click.option("--seeds", default=1, help="Seeds of the maps, from 0.")
@options(
    train=tiny_images("train", slice(300)),
    test=tiny_images("test", slice(300, 500)),
    jobs=[str(Path(__file__).with_name("pixels.toml"))],
    base="n_components = 256",
    changes=["n_components = 128"],
)
def accuracy(
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
    """Fit image JOBS to TRAIN and report their accuracy on TEST, with changes to the first job one at a time.

    Every model chooses its penalty by cross-validation on its training images, in this process.  Seconds are those
    from Zarr to model and to the accuracy.  On a shared machine compare the processor's, user and system together.
    """
    same = tomllib.loads(base)
    named = [(Path(path).stem, path, same) for path in jobs]
    named += [(change, jobs[0], same | tomllib.loads(change)) for change in changes]
    with tempfile.TemporaryDirectory() as place:
        stores = [store(train, rows, f"{place}/train"), store(test, test_rows, f"{place}/test")]
        sizes = [nd.Dataset(path).layout().rows for path in stores]
        notes = [f"{sizes[0]:,} images, {sizes[1]:,} to test on", f"seeds 0 to {seeds - 1} of the maps"]
        result = Result(Path(train).stem, [file(train), file(test)], out, notes)
        for name, path, change in named:
            each = np.array([scored(job(path, change, seed, stores[0]), stores[1]) for seed in range(seeds)])
            row: dict[str, Any] = {"features": name, "m": job(path, change, 0, stores[0]).features.n_components}
            row |= dict(zip(("accuracy, %", "processor seconds", "seconds"), each.T.tolist(), strict=True))
            result.add(row | {"peak GB so far": round(peak_memory_bytes() / 1e9, 1)})
        result.end()


def store(source: str, rows: int, place: str) -> str:
    """Convert some images, in the order of their archive, and return the dataset's path."""
    if rows:
        with np.load(source) as f:
            chosen = np.sort(np.random.default_rng(0).permutation(len(f["y"]))[:rows])
            np.savez(f"{place}.npz", x=f["x"][chosen], y=f["y"][chosen])
        source = f"{place}.npz"
    nd.convert(source, f"{place}.zarr", classes=True)
    return f"{place}.zarr"


def job(path: str, change: dict[str, Any], seed: int, train: str) -> nd.Job:
    """Read a job, with changes to its features."""
    data: dict[str, Any] = read_toml(path)
    data["dataset"] = {"store": train}
    data["features"] |= change | {"seed": seed}
    return decode(data, nd.Job, path)


def scored(what: nd.Job, test: str) -> list[float]:
    """Return the accuracy in percent, and the processor and wall seconds of fitting and evaluating."""
    elapsed = started()
    share = nd.evaluate(nd.fit(what).model, test)["accuracy"]
    return [100 * share, elapsed().processor, elapsed().wall]


@main.command()
@click.argument("archive", type=click.Path(exists=True))
@click.option("--images", default=40)
@click.option("--seeds", default=6)
@click.option("--sizes", "tried", default=4, help="Numbers of columns to try of each map.")
@click.option("--threads", default=2)
@click.option("--exact", type=click.Path(), default=None, help="File that keeps the exact matrix for the next time.")
@options(archive=tiny_images("digits", slice(6), "_train"), images=6, seeds=1, tried=2)
def cntk(archive: str, images: int, seeds: int, tried: int, threads: int, exact: str | None, out: str) -> None:
    """Compare convolutional maps with the exact CNTK on some training images of ARCHIVE, by error and by speed.

    Channels are standardised.  For each map and size: ‖K̂ − K‖/‖K‖ (Frobenius), the same with both matrices centred in
    rows and columns, seconds of drawing, which a worker does once, and seconds of all images after it, all in this
    process on the same threads; then how many times more images a processor second each map makes than the first at
    the same centred error, both as power laws fitted to their rows.  The exact matrix takes some milliseconds a pair.
    """
    backend.use_threads(threads)
    with np.load(archive) as arrays:
        x = images_of(arrays, "train", images).astype(np.float64)
    x = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    k = exact_kernel(x, exact)
    x = x.astype(np.float32)
    size = f"{'×'.join(map(str, x.shape[1:]))}, depth {DEPTH}, {images} images, {seeds} seeds"
    result, lines = Result("Convolutional maps", [file(archive)], out, [size]), {}
    for name, (make, sizes) in MAPS.items():
        points = []
        for m in sizes[:tried]:
            make(m, seeds)(x[:1])
            each = np.array([measured(make(m, seed), x, k) for seed in range(seeds)])
            row = dict(zip(MEASURED, each.T.tolist(), strict=True))
            result.add({"map": name, "columns": m, **row})
            points.append((np.mean(row["centred error"]), images / np.mean(row["processor s"])))
        lines[name] = np.log(points)
    first, *others = lines
    claims = {
        f"`{name}` beside a plain form of the published sketch, {size}": (
            f"{min(rates):.0f} to {max(rates):.0f} times the images a processor second at equal centred kernel error"
        )
        for name in others
        if len(rates := times(lines[first], lines[name]))
    }
    result.end(claims)


def measured(features: Callable[[Any], Any], x: Any, k: Any) -> tuple[float, float, float, float, float]:
    """Measure errors, the seconds that the first image takes beyond another, and those of all by both clocks."""
    first, second = timed(lambda: features(x[:1])), timed(lambda: features(x[:1]))
    elapsed = started()
    z = features(x).astype(np.float64)
    seconds = elapsed()
    return relative(z @ z.T, k), relative(centred(z @ z.T), centred(k)), max(first.wall - second.wall, 0.0), *seconds


def times(first: Any, points: Any) -> Any:
    """Divide rates by those of the first map, at those of its errors that are between the others'."""
    error = first[:, 0]
    error = error[(points[:, 0].min() <= error) & (error <= points[:, 0].max())]
    return np.exp(np.polyval(np.polyfit(*points.T, 1), error) - np.polyval(np.polyfit(*first.T, 1), error))


def exact_kernel(x: Any, path: str | None) -> Any:
    """Compute the exact CNTK matrix, or read it from a file that holds that of the same images."""
    if path and Path(path).exists():
        with np.load(path) as kept:
            if np.array_equal(kept["x"], x):
                return kept["K"]
    k = nd.CNTK(DEPTH, FILTER)(x)
    if path:
        np.savez(path, x=x, K=k)
    return k


def relative(approximate: Any, k: Any) -> float:
    """Compute the relative error of a matrix, in the Frobenius norm."""
    return float(np.linalg.norm(approximate - k) / np.linalg.norm(k))


def centred(k: Any) -> Any:
    """Subtract the means of rows and columns of a symmetric matrix."""
    return k - k.mean(0) - k.mean(1)[:, None] + k.mean()


if __name__ == "__main__":
    main()
