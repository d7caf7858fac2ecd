"""The time of a sparse row in NTKSketch follows its non-zeros, not its columns.

    python jobs/bench_sparse.py [--d 100000] [--m 2048] [--depth 1] [--rows 2000] [--threads 1] [--repeats 5]

Maps rows of each number of non-zeros, in random places, by turns, and prints a table in Markdown: the least
microseconds a row of the repeats, and a straight line through them.
"""

import time

import click
import numpy as np
from scipy.sparse import csr_array

import ntkdist as nd
from ntkdist import backend


@click.command()
@click.option("--d", default=100_000)
@click.option("--m", default=2048)
@click.option("--depth", default=1)
@click.option("--rows", default=2000)
@click.option("--threads", default=1)
@click.option("--repeats", default=5)
def main(d: int, m: int, depth: int, rows: int, threads: int, repeats: int) -> None:
    backend.use_threads(threads)
    features, counts = nd.NTKSketch(m, depth), [30, 100, 300, 1000, 3000]
    cases = {k: sparse_rows(rows, d, k) for k in counts}
    for x in cases.values():
        features(x[:64])
    seconds: dict[int, list[float]] = {k: [] for k in counts}
    for _ in range(repeats):
        for k, x in cases.items():
            start = time.perf_counter()
            features(x)
            seconds[k].append(time.perf_counter() - start)
    micro = {k: 1e6 * min(t) / rows for k, t in seconds.items()}
    slope, base = np.polyfit(counts, list(micro.values()), 1)
    print("| non-zeros a row | microseconds a row | line |\n|---|---|---|")
    for k, t in micro.items():
        print(f"| {k:,} | {t:.0f} | {base + slope * k:.0f} |")
    print(f"\n{d:,} columns, m = {m:,}: {base:.0f} µs + {1000 * slope:.0f} ns a non-zero.")


def sparse_rows(n: int, d: int, k: int) -> csr_array:
    rng = np.random.default_rng(k)
    indices = np.sort(rng.integers(d // k, size=(n, k)) + np.arange(k) * (d // k), axis=1)
    return csr_array((rng.standard_normal(n * k, np.float32), indices.ravel(), np.arange(n + 1) * k), (n, d))


if __name__ == "__main__":
    main()
