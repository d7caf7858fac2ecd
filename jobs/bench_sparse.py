"""The time of a sparse row in NTKSketch follows its non-zeros, not its columns.

    python jobs/bench_sparse.py [--d 100000] [--m 2048] [--depth 1] [--rows 2000] [--threads 1] [--repeats 5]
        [--json FILE]

Maps rows of each number of non-zeros, in random places, by turns: processor microseconds a row, and a straight line
through the least of the repeats.
"""

import functools

import click
import numpy as np
from harness import in_turns, json_option, report
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
@json_option
def main(d: int, m: int, depth: int, rows: int, threads: int, repeats: int, out: str) -> None:
    backend.use_threads(threads)
    features, counts = nd.NTKSketch(m, depth), [30, 100, 300, 1000, 3000]
    cases = {k: sparse_rows(rows, d, k) for k in counts}
    for x in cases.values():
        features(x[:64])
    seconds = in_turns({str(k): functools.partial(features, x) for k, x in cases.items()}, repeats)
    micro = {k: [1e6 * s.processor / rows for s in seconds[str(k)]] for k in counts}
    slope, base = np.polyfit(counts, [min(t) for t in micro.values()], 1)
    found = [{"non-zeros a row": k, "µs a row": t, "line": float(base + slope * k)} for k, t in micro.items()]
    least = ", ".join(f"{min(t):.0f}" for t in micro.values())
    claims = {
        f"a sparse row in `NTKSketch`: {d:,} columns, m={m:,}, depth {depth}": (
            f"{least} processor µs a row at {', '.join(f'{k:,}' for k in counts)} non-zeros"
        )
    }
    data = [{"name": "random sparse rows, seeds the non-zeros", "rows": rows, "columns": d}]
    report("Sparse rows", found, data, out, notes=[f"{base:.0f} µs + {1000 * slope:.0f} ns a non-zero"], claims=claims)


def sparse_rows(n: int, d: int, k: int) -> csr_array:
    rng = np.random.default_rng(k)
    indices = np.sort(rng.integers(d // k, size=(n, k)) + np.arange(k) * (d // k), axis=1)
    return csr_array((rng.standard_normal(n * k, np.float32), indices.ravel(), np.arange(n + 1) * k), (n, d))


if __name__ == "__main__":
    main()
