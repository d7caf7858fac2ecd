"""Seconds of choosing the penalty: folds at once with a BLAS of one thread, against one fold after another.

    python jobs/bench_select.py [--m 2048] [--folds 5] [--pairs 3] [--json FILE]

Random equations; by turns, wall and processor seconds: the whole grid fold by fold with all the threads
of BLAS, the same grid folds at once, and as `cross_validate` does it (from 2,048 features on, a thin grid).
"""

import click
import numpy as np
from harness import in_turns, json_option, report

import ntkdist as nd
from ntkdist.solvers.cross_validation import penalties
from ntkdist.sums import NormalEquations


@click.command()
@click.option("--m", default=2048)
@click.option("--folds", default=5)
@click.option("--pairs", default=3)
@json_option
def main(m: int, folds: int, pairs: int, out: str) -> None:
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(folds):
        z = rng.standard_normal((m // 2, m)) * np.geomspace(1, 1e-2, m)
        parts.append(NormalEquations.zeros(m, 1).update(z, z @ np.ones(m) + rng.standard_normal(len(z))))
    total = sum(parts[1:], parts[0])
    grid, _ = penalties(total)

    def one_by_one() -> None:
        for part in parts:
            train = total - part
            for each in nd.Cholesky().solve(train, [a * train.weight for a in grid]):
                part.loss(each.coef, each.intercept)

    def at_once() -> None:
        nd.cross_validate(parts, nd.Cholesky(), alphas_per_row=grid, extend=False)

    def thin() -> None:
        nd.cross_validate(parts, nd.Cholesky(), extend=False)

    seconds = in_turns({"fold by fold": one_by_one, "folds at once": at_once, "thin grid": thin}, pairs)
    found = [
        {"how": k, "wall s": [s.wall for s in v], "processor s": [s.processor for s in v]} for k, v in seconds.items()
    ]
    data = [{"name": "normals, seed 0", "rows": folds * (m // 2), "columns": m}]
    report("Choosing the penalty", found, data, out, notes=[f"m = {m:,}, {folds} folds, {len(grid)} penalties"])


if __name__ == "__main__":
    main()
