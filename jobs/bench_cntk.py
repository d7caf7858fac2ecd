"""Error against the exact CNTK and images a second of convolutional maps, on CIFAR-10.

    python jobs/bench_cntk.py CIFAR.npz [--images 40] [--seeds 6] [--threads 2] [--exact exact.npz] [--json FILE]

The .npz has the training images as JPEG files end to end, ``jpeg_train``, and where each starts, ``offset_train``.
Channels are standardised.  For each map and size: ‖K̂ − K‖/‖K‖ (Frobenius), the same with both matrices centred in rows
and columns, seconds of drawing, which a worker does once, and seconds of all images after it, all in this process on
the same threads; then how many times more images a processor second each map makes than the first at the same centred
error, both as power laws fitted to their rows.  ``--exact`` keeps the exact matrix, some 0.2 to 1 second a pair, for
the next time.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from harness import file, json_option, report, started, timed
from PIL import Image
from plain_cntk import PlainCNTK

import ntkdist as nd
from ntkdist import backend

DEPTH, FILTER = 3, 3
MEASURED = ("error", "centred error", "drawn in s", "wall s", "processor s")
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
@json_option
def main(data: str, images: int, seeds: int, threads: int, exact: str | None, out: str) -> None:
    backend.use_threads(threads)
    x = cifar(data, images)
    k = exact_kernel(x, exact)
    x = x.astype(np.float32)
    lines: dict[str, Any] = {}
    found: list[dict[str, Any]] = []
    for name, (make, sizes) in MAPS.items():
        points = []
        for m in sizes:
            make(m, seeds)(x[:1])
            each = np.array([measured(make(m, seed), x, k) for seed in range(seeds)])
            row = dict(zip(MEASURED, each.T.tolist(), strict=True))
            found.append({"map": name, "columns": m, **row})
            print(found[-1], flush=True)
            points.append((np.mean(row["centred error"]), images / np.mean(row["processor s"])))
        lines[name] = np.log(points)
    first, *others = lines
    size = f"32×32×3, depth {DEPTH}, {images} images, {seeds} seeds"
    claims = {
        f"`{name}` beside a plain form of the published sketch, {size}": (
            f"{min(rates):.0f} to {max(rates):.0f} times the images a processor second at equal centred kernel error"
        )
        for name in others
        if len(rates := times(lines[first], lines[name]))
    }
    report("Convolutional maps", found, [file(data)], out, notes=[size], claims=claims)


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
