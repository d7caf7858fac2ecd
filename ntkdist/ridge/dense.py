"""Dense fits: one pass sums the equations of every fold, with a Gram that fits a worker; this process solves them."""

import functools
import operator
from dataclasses import replace

from ntkdist.cluster import phases
from ntkdist.cluster.progress import timed
from ntkdist.cluster.reduce import Pass, phase, reduce
from ntkdist.planning.plan import Plan
from ntkdist.ridge.augmented import joined, with_copies
from ntkdist.ridge.fitted import Clock, FitStatistics, Fitted, Solved
from ntkdist.ridge.model import Equations
from ntkdist.ridge.prefix_curve import curve_of
from ntkdist.ridge.prepare import Prepared
from ntkdist.ridge.solve import solve
from ntkdist.sums.equations import EquationsOf, EquationsOnGpu


def fit(p: Plan, prepared: Prepared) -> Fitted:
    """Sum the equations of every fold; `Fitted.solve` solves them later."""
    of, clock = (prepared.empty.features, prepared.empty.preprocessing, p.dtype), Clock()
    summand = EquationsOf(*of) if p.device == "cpu" else EquationsOnGpu(*of, tf32=p.device == "gpu-tf32")
    timeline: list[tuple[float, int]] = []
    apart = p.group_folds[p.folds :]
    source, shards = with_copies(prepared.source, prepared.shards, p.job.augment, apart)
    with phase("equations", sum(shard.rows for shard in shards), prepared.client, prepared.watch) as done:
        one = Pass(source, summand, shards, p.fan_in, timed(done, timeline), prepared.kept)
        parts = reduce(one, prepared.client)
    folds, originals = joined([part.total for part in parts], apart)
    equations = replace(prepared.empty, folds=folds, originals=originals)
    tally = functools.reduce(operator.add, (part.tally for part in parts))
    clock.lap("equations")
    weights = [fold.weight for fold in equations.folds]
    statistics = FitStatistics(equations.preprocessing, weights, tally, clock.seconds, None, timeline)
    return Fitted(statistics, lambda: _solve(p, equations, statistics), equations)


def _solve(p: Plan, equations: Equations, statistics: FitStatistics) -> Solved:
    """Choose the penalty, solve, and score prefixes of the map for the curve."""
    job, clock = p.job, Clock()
    with phases.phase("solve", None):
        model, cv = solve(
            equations,
            solver=p.solver,
            alphas=job.alphas,
            alphas_per_row=job.alphas_per_row,
            per_target=job.alpha_per_target,
        )
    clock.lap("solve")
    with phases.phase("curve", None):
        curve = curve_of(equations, cv, job.alpha_per_target)
    clock.lap("curve")
    statistics.seconds.update(clock.seconds)
    return model, cv, curve
