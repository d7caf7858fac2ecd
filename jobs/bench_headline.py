"""Exact kernel ridge beside ridge on features of the same images: accuracies, seconds, and where they meet.

    python jobs/bench_headline.py images cifar10.npz --side 16 [--keep DIR] [--json FILE]
    python jobs/bench_headline.py vectors fashion_mnist.npz [--json FILE]

Both choose their penalty in one way: by the squared error on the last fifth of the training images, before a fit to all
(ridges.py).  Seconds are those of fitting and of predicting the test images.  Entries and features are computed once,
for fewer images are the first of more; the seconds of each number are those of what it needs.  Features reach the
kernel where their mean accuracy over seeds is at most a standard error of the kernel's accuracy (binomial) below it.
Seconds of 50,000 images are extrapolated: entries in proportion to their number, features to the images, ridge to its
operations.
"""

import hashlib
import os
import tomllib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from harness import Result, Seconds, file, options, started, timed
from prepare import images_of
from ridges import fitted, of_features, of_kernel, operations, pairs, rate
from sklearn.datasets import load_digits

import ntkdist as nd
from ntkdist import backend
from ntkdist.features import FeatureMap
from ntkdist.kernels import Kernel
from ntkdist.spec import encode

FAR = 50_000  # images, for extrapolated seconds
FIRST, RIDGE, TOTAL, WALL = "entries or features, processor s", "ridge, processor s", "processor s", "wall s"
ACCURACY, ERROR, REACHES, TIMES = "accuracy, %", "standard error", "reaches", "times less processor time"
Make = Callable[[int, int], FeatureMap]  # of columns and seed


class Setting(NamedTuple):
    """A kernel, maps that approximate it, images and labels to train and to test on, and the side of a tile."""

    kernel: Kernel
    maps: dict[str, Make]
    x: Any
    y: Any
    tests: Any
    truth: Any
    tile: int
    threads: int


@click.group()
def main() -> None:
    """Compare ridge on features with exact kernel ridge."""


def tiny(place: str) -> str:
    """Write some of scikit-learn's digits as both parts of an archive, for ``--quick``."""
    x, y = load_digits().images[:240].astype(np.uint8), load_digits().target[:240]
    np.savez(f"{place}/digits.npz", x_train=x[:160], y_train=y[:160], x_test=x[160:], y_test=y[160:])
    return f"{place}/digits.npz"


def shared(rows: tuple[int, ...], tested: int, **quick: Any) -> Callable[[Any], Any]:
    """Add the argument and the options of both commands, with these defaults."""
    columns = tuple(2**k for k in range(8, 14))
    added = [
        click.argument("archive", type=click.Path(exists=True)),
        click.option("--rows", "sizes", multiple=True, type=int, default=rows, show_default=True, help="To train on."),
        click.option("--test-rows", "tested", default=tested, show_default=True),
        click.option("--columns", multiple=True, type=int, default=columns, show_default=True),
        click.option("--map", "names", multiple=True, help="Maps to compare; all by default."),
        click.option("--depth", default=3, show_default=True),
        click.option("--seeds", default=3, show_default=True, help="Seeds of the maps, from 0."),
        click.option("--threads", default=2, show_default=True),
        click.option("--minutes", default=120.0, show_default=True, help="Leave out what entries would take longer."),
        click.option("--keep", default="", help="Directory that keeps entries and their seconds for the next time."),
        options(archive=tiny, sizes=[60, 120], tested=80, columns=[64, 128], depth=2, seeds=2, **quick),
    ]

    def add(function: Any) -> Any:
        for each in reversed(added):
            function = each(function)
        return function

    return add


@main.command()
@shared((1000, 2000, 4000), 2000)
@click.option("--side", default=0, help="Pixels of a side, means of squares; 0: all.")
@click.option("--filter", "filter_size", default=3, show_default=True)
@click.option("--network", default="", help='More parameters of CNTK, as TOML, such as "pool = [2, 2, 1]".')
def images(archive: str, side: int, depth: int, filter_size: int, network: str, **how: Any) -> None:
    """Compare the convolutional maps with the exact CNTK of the images of ARCHIVE.

    With parameters of ``--network``, only the maps that have these are compared.
    """
    same: dict[str, Any] = {"depth": depth, "filter_size": filter_size} | tomllib.loads(network)
    maps: dict[str, Make] = {"CNTKRandomFeatures": lambda m, s: nd.CNTKRandomFeatures(m, seed=s, **same)}
    if not network:
        maps["CNTKSketch"] = lambda m, s: nd.CNTKSketch(m, seed=s, **same)
    parts = read(archive, side, max(how["sizes"]), how["tested"])
    compare(archive, Setting(nd.CNTK(**same), maps, *parts, 32, how.pop("threads")), **how)


@main.command()
@shared((1000, 2000, 5000, 10000), 10000)
def vectors(archive: str, depth: int, **how: Any) -> None:
    """Compare the maps of vectors with the exact NTK of the pixels of ARCHIVE."""
    kernel = nd.NTK(depth)
    maps: dict[str, Make] = {
        "NTKRandomFeatures": lambda m, s: nd.NTKRandomFeatures(m, depth, seed=s),
        "NTKSketch": lambda m, s: nd.NTKSketch(m, depth, seed=s),
        "ZonalFeatures": lambda m, s: nd.ZonalFeatures(m, kernel, seed=s),
    }
    x, y, tests, truth = read(archive, 0, max(how["sizes"]), how["tested"])
    parts = x.reshape(len(x), -1), y, tests.reshape(len(tests), -1), truth
    compare(archive, Setting(kernel, maps, *parts, 512, how.pop("threads")), **how)


def read(path: str, side: int, rows: int, tested: int) -> tuple[Any, Any, Any, Any]:
    """Read images and labels to train and to test on, drawn with seed 0, standardised by channel, in float32."""
    parts: list[Any] = []
    with np.load(path) as archive:
        for part, count in (("train", rows), ("test", tested)):
            x, y = images_of(archive, part), archive[f"y_{part}"]
            if len(x) < count:
                raise SystemExit(f"{path} has {len(x):,} {part} images, fewer than the {count:,} asked for")
            order = np.random.default_rng(0).permutation(len(x))[:count]
            parts += [smaller(x[order].astype(np.float32), side), y[order].astype(int)]
    x, y, tests, truth = parts
    mean, deviation = x.mean((0, 1, 2)), x.std((0, 1, 2))
    return (x - mean) / deviation, y, (tests - mean) / deviation, truth


def smaller(x: Any, side: int) -> Any:
    """Average square images over squares, to ``side`` pixels a side."""
    if side in (0, x.shape[1]):
        return x
    if x.shape[1] != x.shape[2] or x.shape[1] % side:
        raise SystemExit(f"images of {x.shape[1]} x {x.shape[2]} pixels have no means of squares of {side} x {side}")
    factor = x.shape[1] // side
    return x.reshape(len(x), side, factor, side, factor, -1).mean((2, 4))


def compare(
    archive: str,
    setting: Setting,
    sizes: Sequence[int],
    tested: int,
    columns: Sequence[int],
    names: Sequence[str],
    seeds: int,
    minutes: float,
    keep: str,
    out: str,
) -> None:
    """Measure the exact kernel at every size, and then every map, size and number of columns."""
    name, size = type(setting.kernel).__name__, "×".join(map(str, setting.x.shape[1:]))
    notes = [f"{tested:,} images of {size} to test on, {setting.kernel}, {seeds} seeds, {setting.threads} threads"]
    result = Result(f"Headline: {name}, {Path(archive).stem}, {size}", [file(archive)], out, notes)
    exact = {row["n"]: row for row in map(result.add, exact_rows(setting, sorted(sizes), minutes, keep))}
    result.notes += [
        f"n = {n:,} is left out: its entries would take more than {minutes:g} minutes" for n in sizes if n not in exact
    ]
    far = extrapolated([*exact.values()], tested)
    result.add({"model": f"exact {name}, extrapolated", "n": FAR, TOTAL: far})
    claims = {}
    for each in names or setting.maps:
        mapped(setting, setting.maps[each](min(columns), seeds), setting.x, setting.tests[:2])  # compiles
        rows = [
            result.add({"model": each} | row | beside(row, exact[row["n"]]))
            for m in sorted(columns)
            for row in feature_rows(setting, setting.maps[each], m, sorted(exact), seeds)
        ]
        n = max(exact)
        subject = f"ridge on `{each}` beside exact ridge with {setting.kernel}, {Path(archive).stem}, {size}, n = {n:,}"
        met = next((row for row in rows if row["n"] == n and row[REACHES]), None)
        if met:
            total = extrapolated([row for row in rows if row["m"] == met["m"]], tested)
            there = {"model": f"{each}, extrapolated", "n": FAR, "m": met["m"], TOTAL: total, TIMES: far / total}
            claims[subject] = outcome(met, exact[n], result.add(there))
        else:
            claims[subject] = f"does not reach {exact[n][ACCURACY]:.1f} % up to m = {max(columns):,}"
    result.end(claims)


def outcome(met: dict[str, Any], exact: dict[str, Any], there: dict[str, Any]) -> str:
    """Write where features reach the exact kernel, and how many times less they cost."""
    return (
        f"reaches {exact[ACCURACY]:.1f} ± {exact[ERROR]:.1f} % with m = {met['m']:,}: {np.mean(met[ACCURACY]):.1f} % "
        f"in {np.mean(met[TOTAL]):,.1f} processor seconds beside {exact[TOTAL]:,.1f}, {met[TIMES]:,.1f} times less; "
        f"extrapolated to {FAR:,} images with that m: {there[TIMES]:,.0f} times"
    )


def exact_rows(setting: Setting, sizes: Sequence[int], minutes: float, keep: str) -> Iterator[dict[str, Any]]:
    """Fit kernel ridge at each size: accuracy, its binomial standard error in percent, and seconds."""
    tested = len(setting.tests)
    for n, k, cross, spent in entries(setting, sizes, minutes, keep):
        row = {"model": f"exact {type(setting.kernel).__name__}", "n": n} | scored(
            setting,
            n,
            lambda train, held, y, k=k, cross=cross: of_kernel(
                k[train, train], cross[:, train] if held is None else k[held, train], y
            ),
            spent,
        )
        share = row[ACCURACY] / 100
        yield row | {ERROR: 100 * float(np.sqrt(share * (1 - share) / tested))}


def feature_rows(setting: Setting, make: Make, m: int, sizes: Sequence[int], seeds: int) -> Iterator[dict[str, Any]]:
    """Fit ridge on the features of every seed at every size."""
    each = [
        [
            scored(
                setting,
                n,
                lambda train, held, y, z=z, others=others: of_features(
                    z[train], others if held is None else z[held], y
                ),
                spent,
            )
            for n, z, others, spent in features_of(setting, make(m, seed), sizes)
        ]
        for seed in range(seeds)
    ]
    for n, rows in zip(sizes, zip(*each, strict=True), strict=True):
        yield {"n": n, "m": m} | {name: [row[name] for row in rows] for name in rows[0]}


def features_of(
    setting: Setting, features: FeatureMap, sizes: Sequence[int]
) -> Iterator[tuple[int, Any, Any, Seconds]]:
    """Yield n, features of training and of test images, and the seconds of drawing, of fitting to a sample, of mapping.

    Features that are not fitted are computed once, and the seconds after drawing are shared out by images.
    """
    x, tests = setting.x[: sizes[-1]], setting.tests
    if features.sample_rows:
        for n in sizes:
            elapsed = started()
            z = mapped(setting, features, x[:n], np.concatenate([x[:n], tests]))
            yield n, z[:n], z[n:], elapsed()
        return
    drawing = timed(lambda: mapped(setting, features, x, x[:1]))
    elapsed = started()
    z = mapped(setting, features, x, np.concatenate([x, tests]))
    mapping = np.subtract(elapsed(), drawing)
    for n in sizes:
        yield n, z[:n], z[len(x) :], Seconds(*(drawing + mapping * (n + len(tests)) / len(z)).tolist())


def mapped(setting: Setting, features: FeatureMap, sample: Any, x: Any) -> Any:
    """Map images, and fit the map to the sample first if it is one that is fitted."""
    return on_threads(setting, lambda: (features.fit(sample) if features.sample_rows else features)(x))


def scored(setting: Setting, n: int, form: Any, spent: Seconds) -> dict[str, Any]:
    """Fit ridge to the first n images and return its accuracy and seconds, those of entries or features included."""
    elapsed = started()
    targets = np.eye(int(setting.y.max()) + 1)[setting.y[:n]]
    penalty, predicted = fitted(lambda train, held: form(train, held, targets[train]), targets)
    ridge = elapsed()
    seconds = {FIRST: spent.processor, RIDGE: ridge.processor, TOTAL: spent.processor + ridge.processor}
    share = float((predicted.argmax(1) == setting.truth).mean())
    return {ACCURACY: 100 * share, **seconds, WALL: spent.wall + ridge.wall, "penalty": penalty}


def beside(row: dict[str, Any], exact: dict[str, Any]) -> dict[str, Any]:
    """Compare a row of features with the exact kernel's."""
    return {
        REACHES: bool(np.mean(row[ACCURACY]) >= exact[ACCURACY] - exact[ERROR]),
        TIMES: exact[TOTAL] / float(np.mean(row[TOTAL])),
        "times less wall time": exact[WALL] / float(np.mean(row[WALL])),
    }


def extrapolated(rows: Sequence[dict[str, Any]], tested: int) -> float:
    """Extrapolate the processor seconds of one model, of several n, to `FAR` images."""
    m, sizes = rows[0].get("m", 0), [row["n"] for row in rows]
    amounts = [[n + tested if m else pairs(n, tested), operations(n, m)] for n in (*sizes, FAR)]
    total = 0.0
    for (*measured, far), part in zip(np.transpose(amounts), (FIRST, RIDGE), strict=True):
        total += far * rate(measured, [float(np.mean(row[part])) for row in rows])
    return total


def entries(
    setting: Setting, sizes: Sequence[int], minutes: float, keep: str
) -> Iterator[tuple[int, Any, Any, Seconds]]:
    """Compute a kernel's entries at growing sizes: yield n, those of training and of test images, and the seconds.

    It ends before a size whose entries would, by the rate so far, take all of them beyond the minutes.
    """
    k, cross = np.empty((sizes[-1], sizes[-1])), np.empty((len(setting.tests), sizes[-1]))
    setting.kernel(setting.x[:2])  # compiles
    spent = Seconds(0.0, 0.0)
    for start, n in pairwise([0, *sizes]):
        done, wanted = (pairs(size, len(setting.tests)) for size in (start, n))
        path = Path(keep) / f"{digest(setting, start, n)}.npz"
        if keep and path.exists():
            with np.load(path) as kept:
                k[start:n, :n], cross[:, start:n], seconds = (
                    kept["k"],
                    kept["cross"],
                    Seconds(*kept["seconds"].tolist()),
                )
            k[:start, start:n] = k[start:n, :start].T
        else:
            if start and spent.wall / done * wanted > 60 * minutes:
                return
            elapsed = started()
            on_threads(setting, lambda start=start, n=n: compute(setting, start, n, k, cross))
            seconds = elapsed()
            if keep:
                save(path, k=k[start:n, :n], cross=cross[:, start:n], seconds=seconds)
        spent = Seconds(*np.add(spent, seconds).tolist())
        yield n, k[:n, :n], cross[:, :n], spent


def compute(setting: Setting, start: int, stop: int, k: Any, cross: Any) -> None:
    """Compute the entries that images start … stop add to those of the images before, in tiles."""
    kernel, x, step = setting.kernel, setting.x, setting.tile
    cuts = [*range(0, start, step), *range(start, stop, step), stop]
    spans = [slice(*cut) for cut in pairwise(cuts)]

    def tile(pair: tuple[slice, slice]) -> None:
        a, b = pair
        k[a, b] = kernel(x[a]) if a == b else kernel(x[a], x[b])
        k[b, a] = k[a, b].T

    def crossed(pair: tuple[slice, slice]) -> None:
        cross[pair] = kernel(setting.tests[pair[0]], x[pair[1]])

    new = [span for span in spans if span.start >= start]
    backend.parallel_for(tile, [(a, b) for a in new for b in spans if b.start <= a.start])
    tests = [slice(at, at + step) for at in range(0, len(setting.tests), step)]
    backend.parallel_for(crossed, [(a, b) for a in tests for b in new])


def on_threads(setting: Setting, call: Callable[[], Any]) -> Any:
    """Call with the setting's threads, each with a BLAS of one."""
    with backend.own_threads():
        backend.use_threads(setting.threads)
        return call()


def digest(setting: Setting, start: int, stop: int) -> str:
    """Name the entries of these images."""
    name = hashlib.sha256(f"{encode(setting.kernel)} {start} {stop}".encode())
    for images in (setting.x[:stop], setting.tests):
        name.update(np.ascontiguousarray(images).tobytes())
    return name.hexdigest()[:16]


def save(path: Path, **arrays: Any) -> None:
    """Write arrays, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    os.replace(partial, path)


if __name__ == "__main__":
    main()
