"""Reports of a learned metric: its rounds, what it weighs, and what the reported error has seen."""

from ntkdist.data.scaling import Preprocessing
from ntkdist.planning.plan import Plan
from ntkdist.ridge.fit_report import DirectionReport, MetricReport, RoundReport
from ntkdist.ridge.importances import directions, importances, raw_names, sensitivities

DIRECTIONS = 3


def report(p: Plan, pre: Preprocessing) -> MetricReport | None:
    """Return the report of the metric of a fit; None if it has none."""
    if not pre.metric.size:
        return None
    asked, reused, names = p.job.metric, p.job.preprocess.reuse, raw_names(pre)
    rounds = [RoundReport(one.scale, one.rmse, one.alpha, one.kept, one.stretch, one.last_rmse) for one in pre.rounds]
    plain = bool(rounds) and rounds[0].kept
    return MetricReport(
        form=("diagonal" if pre.metric.ndim == 1 else "full") if reused else asked.form,
        reused=reused,
        fold=None if reused else p.folds - 1,
        n_components=None if reused else asked.components(p.m),
        rounds=rounds,
        ended=pre.rounds[-1].ended if rounds else "",
        importances=dict(zip(names, importances(pre).tolist(), strict=True)),
        sensitivities=dict(zip(names, sensitivities(pre).tolist(), strict=True)),
        directions=[] if plain else [DirectionReport(*one) for one in directions(pre, DIRECTIONS)],
    )


def note(p: Plan, metric: MetricReport) -> str:
    """Describe how the metric was chosen, and what the reported error has seen, in a sentence."""
    if metric.reused:
        return f"the metric is that of {metric.reused}, which may have seen the folds whose error is reported"
    held = f"the rows held out by '{p.dataset.holdout}'" if p.dataset.holdout else f"fold {metric.fold}"
    best, last, plain = metric.best, len(metric.rounds) - 1, metric.rounds[0].rmse
    where = f"in fits with {metric.n_components:,} features, on {held}, which no gradient has seen"
    if best:
        with_it = metric.rounds[best].rmse
        kept = f"the metric of round {best} of {last} was kept: rmse {with_it:.4g}, and {plain:.4g} without it, {where}"
    else:
        kept = f"no metric was kept, for none lowered the rmse, {plain:.4g} {where}"
    if (stretch := metric.rounds[best].stretch) != 1:
        kept += f"; for the fit's own features rows are {stretch:.3g} times as long"
    return f"{kept}; the reported error is of {held} too, which chose penalty, round and length"
