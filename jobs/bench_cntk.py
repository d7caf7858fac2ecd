"""Error against the exact CNTK and images a second of convolutional maps, on CIFAR-10.

    python jobs/bench_cntk.py CIFAR.npz [--images 40] [--seeds 6] [--threads 2] [--exact exact.npz]

The .npz has the training images as JPEG files end to end, ``jpeg_train``, and where each starts, ``offset_train``.
Channels are standardised.  For each map and size: ‖K̂ − K‖/‖K‖ (Frobenius), the same with both matrices centred in rows
and columns, seconds of drawing, which a worker does once, and images a second after it, all in this process on the
same threads; then how many times more images a second each map makes than the first at the same centred error, both as
power laws fitted to their rows.  ``--exact`` keeps the exact matrix, some 0.2 to 1 second a pair, for the next time.
"""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from plain_cntk import PlainCNTK

import ntkdist as nd
from ntkdist import backend

DEPTH, FILTER = 3, 3
Make = Callable[[int, int], Callable[[Any], Any]]
MAPS: dict[str, tuple[Make, tuple[int, ...]]] = {  # name: (columns, seed) -> map, and columns to try
    "plain CNTKSketch": (lambda m, s: PlainCNTK(m, DEPTH, FILTER, seed=s), (256, 512, 1024, 2048)),
    "CNTKSketch": (lambda m, s: nd.CNTKSketch(m, DEPTH, FILTER, seed=s), (256, 512, 1024, 2048)),
    "CNTKRandomFeatures": (lambda m, s: nd.CNTKRandomFeatures(m, DEPTH, FILTER, seed=s), (128, 256, 512, 1024)),
}


@click.command()
@click.argument("data", type=click.Path(exists=True))
@click.option("--images", default=40)
@click.option("--seeds", default=6)
@click.option("--threads", default=2)
@click.option("--exact", type=click.Path(), default=None)
def main(data: str, images: int, seeds: int, threads: int, exact: str | None) -> None:
    backend.use_threads(threads)
    x = cifar(data, images)
    k = exact_kernel(x, exact)
    x = x.astype(np.float32)
    print("| map | columns | error | centred error | drawn in s | images/s |")
    print("|---|---|---|---|---|---|")
    lines: dict[str, Any] = {}
    for name, (make, sizes) in MAPS.items():
        rows = []
        for m in sizes:
            make(m, seeds)(x[:1])
            found = [measured(make(m, seed), x, k) for seed in range(seeds)]
            (error, centred_error, drawn, seconds), spread = np.mean(found, axis=0), np.std(found, axis=0)
            rate = images / seconds
            rows.append((centred_error, rate))
            cells = f"{error:.3f} ± {spread[0]:.3f} | {centred_error:.3f} ± {spread[1]:.3f} | {drawn:.2f} | {rate:.2f}"
            print(f"| {name} | {m} | {cells} |", flush=True)
        lines[name] = np.log(rows)
    compare(lines)


def measured(features: Callable[[Any], Any], x: Any, k: Any) -> tuple[float, float, float, float]:
    """Error, centred error, seconds of the first image beyond those of another, seconds of all."""
    times = []
    for images in (x[:1], x[:1], x):
        start = time.perf_counter()
        z = features(images).astype(np.float64)
        times.append(time.perf_counter() - start)
    return relative(z @ z.T, k), relative(centred(z @ z.T), centred(k)), max(times[0] - times[1], 0.0), times[2]


def compare(lines: dict[str, Any]) -> None:
    """Rates at equal centred error, at the errors of the first map."""
    (base, first), *others = lines.items()
    for name, rows in others:
        for error in first[:, 0]:
            ratio = np.exp(np.polyval(np.polyfit(*rows.T, 1), error) - np.polyval(np.polyfit(*first.T, 1), error))
            inside = rows[:, 0].min() <= error <= rows[:, 0].max()
            note = "" if inside else " (extrapolated)"
            print(f"{name}: {ratio:.1f} times the images/s of {base} at a centred error of {np.exp(error):.3f}{note}")


def cifar(path: str, images: int) -> Any:
    with np.load(path) as file:
        jpeg, offset = file["jpeg_train"], file["offset_train"]
    decoded = [Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes())) for i in range(images)]
    x = np.stack([np.asarray(image, np.float64) for image in decoded])
    return (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))


def exact_kernel(x: Any, path: str | None) -> Any:
    if path and Path(path).exists():
        with np.load(path) as file:
            if np.array_equal(file["x"], x):
                return file["K"]
    k = nd.CNTK(DEPTH, FILTER)(x)
    if path:
        np.savez(path, x=x, K=k)
    return k


def relative(found: Any, k: Any) -> float:
    return float(np.linalg.norm(found - k) / np.linalg.norm(k))


def centred(k: Any) -> Any:
    return k - k.mean(0) - k.mean(1)[:, None] + k.mean()


if __name__ == "__main__":
    main()
